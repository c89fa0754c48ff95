"""Times calls that return before their work is done.

The inputs rotate among several sets that no cache holds together, so that no
call finds its own input there; calls are enqueued back to back and waited for
once, so that what a call costs the host is hidden behind the device.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from experiments.harness import writing

T = TypeVar("T")

TINY = "on a CPU, for the tests only"
# How HTML and printed tables of times call the columns of a row.
HEADINGS = {
  "implementation": "runs in",
  "median_ms": "ms",
  "lowest_ms": "lowest",
  "highest_ms": "highest",
  "first_s": "first call, s",
  "to_copy": "x copy",
  "to_fla": "x fla",
  "to_limit": "x limit",
  "nonfinite": "not finite",
  "memory_mb": "memory in MB",
}
DIGITS = {
  "ms": 3,
  "lowest": 3,
  "highest": 3,
  "first call, s": 1,
  "x copy": 2,
  "x fla": 2,
  "x limit": 2,
  "memory in MB": 0,
}

INPUT_SETS = 3
# Above twice the second-level cache of the largest GPU known here (60 MB).
LEAST_BYTES = 128_000_000
# A measurement of a slow call is cut to about this long, but one call at least.
LONGEST_S = 1.0


class Job(NamedTuple):
  """One thing to time and to evaluate."""

  name: str  # what rows call it
  implementation: str  # where it runs
  # returns its Timing and the columns that evaluate its output
  run: Callable[[], tuple["Timing", dict[str, Any]]]
  reason: str | None = None  # why it cannot run here, or None


class Timing(NamedTuple):
  """Milliseconds a call, over several measurements."""

  median_ms: float  # of the measurements
  lowest_ms: float  # the fastest
  highest_ms: float  # the slowest
  calls: int  # back-to-back calls in a measurement
  first_s: float  # seconds of the very first call, which compiles


def measure(
  call: Callable[..., Any],
  inputs: Sequence[tuple],
  *,
  repeats: int,
  inner: int,
  wait: Callable[[Any], object] = jax.block_until_ready,
  clock: Callable[[], float] = time.perf_counter,
) -> Timing:
  """Times a call.

  Args:
    call: enqueues the work and returns its output.
    inputs: sets of arguments, taken in turn.
    repeats: measurements, >= 1.
    inner: most calls in a measurement, >= 1.
    wait: given the last output, returns once everything enqueued is done.
    clock: seconds.

  Returns:
    Its times, after one call a set and one unmeasured round.
  """
  warm = warmed(call, inputs, inner=inner, wait=wait, clock=clock)
  return of([warm.once() for _ in range(repeats)], warm.calls, warm.first_s)


class Warm(NamedTuple):
  """A call that is compiled and ready to be measured."""

  once: Callable[[], float]  # seconds of one measurement
  calls: int  # back-to-back calls in it
  first_s: float  # seconds of the very first call, which compiled


def warmed(
  call: Callable[..., Any],
  inputs: Sequence[tuple],
  *,
  inner: int,
  wait: Callable[[Any], object] = jax.block_until_ready,
  clock: Callable[[], float] = time.perf_counter,
) -> Warm:
  """Readies a call: the arguments are those of `measure`."""
  turn = itertools.cycle(inputs)

  def seconds(calls: int) -> float:
    start = clock()
    for _ in range(calls):
      out = call(*next(turn))
    wait(out)
    return clock() - start

  first = seconds(1)
  seconds(len(inputs))
  one = seconds(len(inputs)) / len(inputs)
  calls = inner
  if one * inner > LONGEST_S:
    calls = max(1, int(LONGEST_S / one))
  seconds(calls)
  return Warm(lambda: seconds(calls), calls, first)


def of(seconds: Sequence[float], calls: int, first: float = 0.0) -> Timing:
  """Statistics of measurements of `calls` calls each."""
  each = [1e3 * s / calls for s in seconds]
  return Timing(statistics.median(each), min(each), max(each), calls, first)


def attempt(job: Callable[[], T]) -> tuple[T | None, str]:
  """The job's result, or None and why: one failure must not end a study."""
  try:
    return job(), ""
  except writing.Unwritable:  # which is no fault of what was to be done
    raise
  except Exception as error:
    lines = str(error).strip().splitlines() or [""]
    return None, f"failed, {type(error).__name__}: {lines[0][:200]}"


def run(job: Job) -> tuple[Timing | None, dict[str, Any], str]:
  """Runs a job: its timing, what evaluates it, and why either is missing."""
  if job.reason:
    return None, {}, job.reason
  result, note = attempt(job.run)
  timing, evaluated = (None, {}) if result is None else result
  return timing, evaluated, note


def row(
  job: Job, about: Mapping[str, Any], evaluated: Sequence[str] = ()
) -> dict[str, Any]:
  """Runs a job and makes its row of a table of times.

  Args:
    job: what to run.
    about: columns that say what it is, besides name and implementation.
    evaluated: columns that its run returns beside the timing.

  Returns:
    name, implementation, `about`, device, the fields of `Timing`, `evaluated`
    and note, which says why the others are None.
  """
  timing, found, note = run(job)
  return {
    "name": job.name,
    "implementation": job.implementation,
    **about,
    "device": device_name(),
    **columns(timing),
    **dict.fromkeys(evaluated),
    **found,
    "note": note,
  }


def columns(timing: Timing | None) -> dict[str, Any]:
  """The fields of a timing as a row has them, None where there is none."""
  if timing is None:
    return dict.fromkeys(Timing._fields)
  return timing._asdict()


def ratio(timing: Any, other: Any) -> float | None:
  """How many times as long as the other, by medians; None without either.

  Args:
    timing: a Timing, a row of a table of times, or None.
    other: likewise.
  """
  ours, theirs = _median(timing), _median(other)
  return None if ours is None or theirs is None else ours / theirs


def _median(timing: Any) -> float | None:
  if isinstance(timing, Mapping):
    return timing["median_ms"]
  return None if timing is None else timing.median_ms


def device_name() -> str:
  """What runs the study."""
  return jax.devices()[0].device_kind


def machine() -> str:
  """What ran the study, as every table says it."""
  return f"{device_name()} with jax {jax.__version__}"


def mark(implementation: str) -> str:
  """What every title ends with where the run is none of a GPU's kernels."""
  if implementation == "gpu":
    return ""
  if jax.default_backend() == "cpu":
    return f" ({TINY})"
  return f" (in XLA on a {jax.default_backend()}, for the tests only)"


def without_gpu(name: str, implementation: str) -> bool:
  """Whether there is nothing to time here, which is said in one sentence."""
  platform = jax.default_backend()
  missing = implementation == "gpu" and platform != "gpu"
  if missing:
    print(
      f"{name}: nothing was timed, because jax finds no GPU here (its "
      f"devices are of platform {platform!r})"
    )
  return missing
