"""Throughput of the photo prior in JAX beside the same network in PyTorch.

  python -m experiments.prior_speed

Settings: `configs/prior_speed.py`. PyTorch is timed on CUDA devices only,
eager and under `torch.compile`, channels last; elsewhere a sentence says so.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import record, runner
from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing
from experiments.harness.speed.timing import Job, Timing
from experiments.peers import gpu, torch_unet
from posterior_jax import priors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the timing."""

  batch: int = setting(at_least=1)  # images a call
  size: int = setting(at_least=8, multiple_of=8)  # their side
  # of the arithmetic
  dtypes: tuple[str, ...] = setting(among=("float32", "bfloat16"), some=True)
  repeats: int = setting(at_least=1)  # measurements
  inner: int = setting(at_least=1)  # calls in a measurement


def speed(settings: Settings, run: record.Run) -> None:
  """Times every form, writes and prints the table."""
  about = {"batch": settings.batch, "size": settings.size}
  found: dict[str, dict] = {}
  for dtype in settings.dtypes:
    for job in jobs(settings, dtype):
      row = timing.row(job, about, ("difference",))
      del row["implementation"]
      found[job.name] = row = {"form": row.pop("name"), **row}
      run.write("prior_speed", row)
      time = f"{row['median_ms'] or 0:.2f} ms"
      print(f"{job.name}: {row['note'] or time}")
    ratio = timing.ratio(
      found[f"jax {dtype}"], found[f"torch compiled {dtype}"]
    )
    if ratio is not None:
      print(f"jax over torch compiled, {dtype}: {ratio:.3f}")


def jobs(settings: Settings, dtype: str) -> list[Job]:
  """JAX, PyTorch and compiled PyTorch, on the same images."""
  prior = priors.photo_prior(dtype=dtype)
  shape = (settings.batch, settings.size, settings.size, 3)
  keys = jax.random.split(jax.random.key(0), timing.INPUT_SETS)
  sigma = jnp.full(settings.batch, 0.2)
  inputs = [(jax.random.normal(key, shape), sigma) for key in keys]
  call = jax.jit(prior.denoise)
  options: dict[str, Any] = {
    "repeats": settings.repeats,
    "inner": settings.inner,
  }

  def in_jax() -> tuple[Timing, dict[str, Any]]:
    return timing.measure(call, inputs, **options), {}

  def in_torch(compiled: bool) -> tuple[Timing, dict[str, Any]]:
    import torch

    other = torch_unet.denoiser(
      prior.params, prior.config, device="cuda", dtype=dtype
    )
    other = torch.compile(other) if compiled else other
    # NHWC in memory is what PyTorch calls channels last.
    tensors = [
      (gpu.shared(x).permute(0, 3, 1, 2), gpu.shared(s)) for x, s in inputs
    ]
    with torch.no_grad():
      taken = timing.measure(other, tensors, wait=gpu.wait, **options)
      y = other(*tensors[0]).permute(0, 2, 3, 1).cpu().numpy()
    gap = float(np.abs(np.asarray(call(*inputs[0])) - y).max())
    return taken, {"difference": gap}

  reason = gpu.missing("torch")
  return [
    Job(f"jax {dtype}", "xla", in_jax),
    Job(f"torch eager {dtype}", "torch", lambda: in_torch(False), reason),
    Job(f"torch compiled {dtype}", "torch", lambda: in_torch(True), reason),
  ]


if __name__ == "__main__":
  gpu.share_memory()
  runner.main("prior_speed", Settings, speed)
