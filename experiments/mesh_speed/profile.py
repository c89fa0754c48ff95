"""What a step waited for, from a trace of the profiler."""

import collections
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

# Kernels that move data between devices: NCCL's, and XLA's own on TPUs.
_MOVES = ("nccl", "all-", "reduce-scatter", "collective", "send", "recv")


class Waits(NamedTuple):
  """Where the time of a device went."""

  communication: float  # share of its busy time spent on moving data, 0 to 1
  # the names that took the most, each with its share, longest first
  longest: list[tuple[str, float]]


def of_call(
  call: Callable[[], Any],  # what is traced
  folder: pathlib.Path,  # takes the trace, which TensorBoard and Perfetto open
) -> Waits | None:
  """Traces a call; None where the platform has no timeline of a device."""
  with jax.profiler.trace(str(folder)):
    jax.block_until_ready(call())
  traces = sorted(folder.rglob("*.xplane.pb"))
  return waits(jax.profiler.ProfileData.from_file(str(traces[-1])).planes)


def waits(planes: Iterable[Any]) -> Waits | None:
  """Of the planes of a trace, over all devices."""
  time: collections.Counter[str] = collections.Counter()
  for plane in planes:
    if not plane.name.startswith("/device:"):
      continue
    for line in plane.lines:
      # Other lines repeat the same time by module, by layer and by step.
      if line.name.startswith(("Stream", "XLA Ops")):
        for event in line.events:
          time[event.name] += event.duration_ns
  whole = sum(time.values())
  if not whole:
    return None
  moved = sum(
    t for name, t in time.items() if any(x in name.lower() for x in _MOVES)
  )
  longest = [(name, t / whole) for name, t in time.most_common(5)]
  return Waits(moved / whole, longest)
