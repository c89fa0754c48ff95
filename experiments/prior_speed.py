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
from experiments.harness import timing as gpu_timing
from experiments.harness.timing import Job, Timing
from experiments.peers import gpu, torch_unet
from posterior_jax import priors


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the timing.

  Attributes:
    batch: images a call.
    size: their side.
    dtypes: of the arithmetic, by name.
    repeats: measurements.
    inner: calls in a measurement.
  """

  batch: int
  size: int
  dtypes: tuple[str, ...]
  repeats: int
  inner: int

  def __post_init__(self):
    """Refuses values out of range."""
    counts = (self.batch, self.repeats, self.inner, self.size)
    if min(counts) < 1 or self.size % 8:
      raise ValueError(
        "batch, repeats, inner and size must be positive and the size "
        f"divisible by 8; got {self}"
      )


def speed(settings: Settings, run: record.Run) -> None:
  """Times every form, writes and prints the table."""
  found: dict[str, Timing | None] = {}
  for dtype in settings.dtypes:
    for job in jobs(settings, dtype):
      timing, judged, note = gpu_timing.run(job)
      found[job.name] = timing
      row = {
        "form": job.name,
        "batch": settings.batch,
        "size": settings.size,
        **gpu_timing.columns(timing),
        "difference": judged.get("difference"),
        "note": note,
      }
      run.write("prior_speed", row)
      shown = note or f"{timing.median_ms:.2f} ms" if timing else note
      print(f"{job.name}: {shown}")
    ratio = gpu_timing.ratio(
      found[f"jax {dtype}"], found[f"torch compiled {dtype}"]
    )
    if ratio is not None:
      print(f"jax over torch compiled, {dtype}: {ratio:.3f}")


def jobs(settings: Settings, dtype: str) -> list[Job]:
  """JAX, PyTorch and compiled PyTorch, on the same images."""
  prior = priors.photo_prior(dtype=dtype)
  shape = (settings.batch, settings.size, settings.size, 3)
  keys = jax.random.split(jax.random.key(0), gpu_timing.INPUT_SETS)
  sigma = jnp.full(settings.batch, 0.2)
  inputs = [(jax.random.normal(key, shape), sigma) for key in keys]
  call = jax.jit(prior.denoise)
  options: dict[str, Any] = {
    "repeats": settings.repeats,
    "inner": settings.inner,
  }

  def in_jax() -> tuple[Timing, dict[str, Any]]:
    return gpu_timing.measure(call, inputs, **options), {}

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
      timing = gpu_timing.measure(other, tensors, wait=gpu.wait, **options)
      y = other(*tensors[0]).permute(0, 2, 3, 1).cpu().numpy()
    gap = float(np.abs(np.asarray(call(*inputs[0])) - y).max())
    return timing, {"difference": gap}

  reason = gpu.missing("torch")
  return [
    Job(f"jax {dtype}", "xla", in_jax),
    Job(f"torch eager {dtype}", "torch", lambda: in_torch(False), reason),
    Job(f"torch compiled {dtype}", "torch", lambda: in_torch(True), reason),
  ]


if __name__ == "__main__":
  gpu.share_memory()
  runner.main("prior_speed", Settings, speed)
