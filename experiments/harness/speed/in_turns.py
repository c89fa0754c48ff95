"""Times calls in turns: what slows the machine for a while slows them all."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.harness.speed import timing


class Ratio(NamedTuple):
  """How many times as long as another call's a call's measurements are."""

  median: float  # over the turns
  lowest: float
  highest: float


class Beside(NamedTuple):
  """A call's times beside those of the first call."""

  timing: timing.Timing
  ratio: Ratio  # of each turn's measurement to the first call's


def measure(
  calls: Sequence[Callable[..., Any]],
  inputs: Sequence[tuple],
  *,
  repeats: int,
  inner: int,
  wait: Callable[[Any], object] = jax.block_until_ready,
  clock: Callable[[], float] = time.perf_counter,
) -> list[Beside]:
  """Times calls on the same inputs, a measurement of each in every turn.

  Args:
    calls: at least one; each as of `timing.measure`, as is all else.
    inputs: likewise.
    repeats: turns, >= 1.
    inner: likewise.
    wait: likewise.
    clock: likewise.

  Returns:
    One a call.
  """
  warm = [
    timing.warmed(call, inputs, inner=inner, wait=wait, clock=clock)
    for call in calls
  ]
  seconds = np.array([[one.once() for one in warm] for _ in range(repeats)])
  each = seconds / [one.calls for one in warm]  # [repeats, calls]
  found = []
  for one, own, ratios in zip(warm, seconds.T, (each / each[:, :1]).T):
    ratio = Ratio(*(float(f(ratios)) for f in (np.median, np.min, np.max)))
    found.append(Beside(timing.of(own.tolist(), one.calls, one.first_s), ratio))
  return found
