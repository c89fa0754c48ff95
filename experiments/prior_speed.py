"""Throughput of the photo priors in JAX, the small one's beside PyTorch's.

  python -m experiments.prior_speed

Settings: `configs/prior_speed.py`. The large prior is timed in turns with the
small one, and how many times as long it takes is printed with its spread. The
small one's network in PyTorch is timed on CUDA devices only, eager and under
`torch.compile`, channels last; elsewhere a sentence says so.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import record, runner
from experiments.harness.settings import DTYPES, Checked, setting
from experiments.harness.speed import in_turns, timing
from experiments.harness.speed.timing import Job, Timing
from experiments.peers import gpu, torch_unet
from posterior_jax import priors

# The large one is compared with the first.
_PRIORS: tuple[Literal["small", "large"], ...] = ("small", "large")
# Of a prior's row: its time over the small one's, by turns.
_RATIOS = ("to_small", "to_small_lowest", "to_small_highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the timing."""

  batch: int = setting(at_least=1)  # images a call
  size: int = setting(at_least=8, multiple_of=8)  # their side
  # of the arithmetic
  dtypes: tuple[str, ...] = setting(among=DTYPES, some=True)
  repeats: int = setting(at_least=1)  # measurements
  inner: int = setting(at_least=1)  # calls in a measurement


def speed(settings: Settings, run: record.Run) -> None:
  """Times every form, writes and prints the table."""
  about = {"batch": settings.batch, "size": settings.size}
  found: dict[str, dict] = {}
  for dtype in settings.dtypes:
    for job in jobs(settings, dtype):
      row = timing.row(job, about, ("difference", *_RATIOS))
      del row["implementation"]
      found[job.name] = row = {"form": row.pop("name"), **row}
      run.write("prior_speed", row)
      time = f"{row['median_ms'] or 0:.2f} ms"
      print(f"{job.name}: {row['note'] or time}")
    small = found[f"jax {dtype}"]
    ratio = timing.ratio(small, found[f"torch compiled {dtype}"])
    if ratio is not None:
      print(f"jax over torch compiled, {dtype}: {ratio:.3f}")
    times, low, high = (found[f"jax large {dtype}"][name] for name in _RATIOS)
    if times is not None:
      print(f"large over small, {dtype}: {times:.2f} [{low:.2f}, {high:.2f}]")


def jobs(settings: Settings, dtype: str) -> list[Job]:
  """Both priors in JAX, the small one in PyTorch, on the same images."""
  shape = (settings.batch, settings.size, settings.size, 3)
  keys = jax.random.split(jax.random.key(0), timing.INPUT_SETS)
  sigma = jnp.full(settings.batch, 0.2)
  inputs = [(jax.random.normal(key, shape), sigma) for key in keys]
  options: dict[str, Any] = {
    "repeats": settings.repeats,
    "inner": settings.inner,
  }
  both = [priors.photo_prior(name, dtype=dtype) for name in _PRIORS]
  calls = [jax.jit(prior.denoise) for prior in both]
  # One measurement for the rows of both.
  measured = functools.cache(lambda: in_turns.measure(calls, inputs, **options))

  def in_jax(number: int) -> tuple[Timing, dict[str, Any]]:
    found = measured()[number]
    return found.timing, dict(zip(_RATIOS, found.ratio))

  def in_torch(compiled: bool) -> tuple[Timing, dict[str, Any]]:
    return _in_torch(both[0], calls[0], inputs, dtype, compiled, options)

  reason = gpu.missing("torch")
  return [
    Job(f"jax {dtype}", "xla", lambda: in_jax(0)),
    Job(f"jax large {dtype}", "xla", lambda: in_jax(1)),
    Job(f"torch eager {dtype}", "torch", lambda: in_torch(False), reason),
    Job(f"torch compiled {dtype}", "torch", lambda: in_torch(True), reason),
  ]


def _in_torch(
  prior: priors.UNetPrior[priors.UNetConfig],
  call: Callable[..., Any],
  inputs: Sequence[tuple],
  dtype: str,
  compiled: bool,
  options: dict[str, Any],
) -> tuple[Timing, dict[str, Any]]:
  """The prior's network in PyTorch, and its difference from JAX's answer."""
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


if __name__ == "__main__":
  gpu.share_memory()
  runner.main("prior_speed", Settings, speed)
