"""The inverse alone in the speed study: beside copies of its bytes, and fla.

The part returns rows, never prints, and goes on where a case fails: the row
then says why. Data come from every key family, so that nothing is timed on
easy numbers.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import key_families
from experiments.harness import timing as gpu_timing
from experiments.harness.progress import Tick
from experiments.harness.timing import Job, Timing
from experiments.inverse_speed.cases import Case, compiled
from experiments.peers import gpu

BETAS = ((0.6, 1.0), (0.0, 2.0))  # as the study of errors has them
COPY, TORCH_COPY, FLA = "copy", "torch copy", "fla solve_tril"


class InverseRow(NamedTuple):
  """One inverse, or a copy of the same bytes.

  Attributes:
    name: of the case.
    implementation: "gpu", "xla", "torch" or "fla".
    matrices: in a batch.
    chunk_size: C.
    device: that ran it.
    median_ms: milliseconds a call, over the repeats.
    lowest_ms: the fastest.
    highest_ms: the slowest.
    calls: back-to-back calls in a measurement.
    first_s: seconds of the first call, compilation included.
    to_copy: times as long as the copy.
    to_fla: times as long as fla's.
    error_beta_1: worst relative error, beta in BETAS[0].
    error_beta_2: the same, beta in BETAS[1].
    nonfinite: entries of all outputs that are not finite.
    note: why something is missing.
  """

  name: str
  implementation: str
  matrices: int
  chunk_size: int
  device: str
  median_ms: float | None
  lowest_ms: float | None
  highest_ms: float | None
  calls: int | None
  first_s: float | None
  to_copy: float | None
  to_fla: float | None
  error_beta_1: float | None
  error_beta_2: float | None
  nonfinite: int | None
  note: str


class Base(NamedTuple):
  """The distinct matrices that a timed batch repeats.

  Attributes:
    a: [M, C, C] float32.
    bound: [M] float32, the largest beta of the range.
    truth: [M, C, C] float64 inverses.
  """

  a: np.ndarray
  bound: np.ndarray
  truth: np.ndarray


def device_name() -> str:
  """What runs the study."""
  return jax.devices()[0].device_kind


def base_count(draws: int) -> int:
  """Matrices in `base(draws=draws)`."""
  families, decays = len(key_families.FAMILIES), len(key_families.DECAYS)
  return len(BETAS) * families * decays * draws


def base(seed: int, draws: int, chunk_size: int) -> Base:
  """`draws` chunks of every family, decay and range of beta, ranges outermost.

  Args:
    seed: of the draws.
    draws: chunks of each combination.
    chunk_size: C.
  """
  parts = [
    key_families.draw(
      family,
      seed=seed,
      count=draws,
      chunk_size=chunk_size,
      beta=beta,
      decay=decay,
    ).a.astype(np.float32)
    for beta in BETAS
    for family in key_families.FAMILIES
    for decay in key_families.DECAYS
  ]
  a = np.concatenate(parts)
  tops = np.array([beta[1] for beta in BETAS], np.float32)
  bound = np.repeat(tops, len(a) // len(BETAS))
  return Base(a, bound, key_families.exact_inverse(a))


def input_sets(found: Base, count: int) -> list[tuple[jax.Array, jax.Array]]:
  """The base repeated `count` times over, each set beginning elsewhere.

  The first set begins at the base's first matrix.
  """
  a, bound = jnp.asarray(found.a), jnp.asarray(found.bound)
  m = len(found.a)
  sets = []
  for i in range(gpu_timing.INPUT_SETS):
    start = i * (m // gpu_timing.INPUT_SETS)
    index = jnp.asarray((np.arange(count) + start) % m, jnp.int32)
    sets.append((jnp.take(a, index, axis=0), jnp.take(bound, index)))
  return jax.block_until_ready(sets)


def errors(found: Base, t: jax.Array) -> tuple[float, float]:
  """Worst relative errors of the first outputs, one for each range of beta."""
  m = len(found.a)
  relative = key_families.relative_error(np.asarray(t[:m]), found.truth)
  return float(relative[: m // 2].max()), float(relative[m // 2 :].max())


def inverse_part(
  settings: Any, cases: Sequence[Case], tick: Tick
) -> Iterator[InverseRow]:
  """Times the copies, fla and every case on the same buffers.

  Args:
    settings: of `experiments.inverse_speed`.
    cases: what to time.
    tick: called before each.

  Yields:
    One row each: the copies, fla, the cases in their order.
  """
  tick("inverse: drawing")
  found = base(settings.seed, settings.draws, settings.chunk_size)
  sets = input_sets(found, settings.count)
  time = functools.partial(
    gpu_timing.measure, repeats=settings.repeats, inner=settings.inner
  )
  ours = [
    Job(
      c.name, c.implementation, functools.partial(_ours, found, sets, c, time)
    )
    for c in cases
  ]
  known = {}
  for job in [*_rivals(found, sets, settings.chunk_size, time), *ours]:
    tick(f"inverse: {job.name}")
    timing, judged, note = gpu_timing.run(job)
    known[job.name] = timing
    yield InverseRow(
      name=job.name,
      implementation=job.implementation,
      matrices=settings.count,
      chunk_size=settings.chunk_size,
      device=device_name(),
      to_copy=gpu_timing.ratio(timing, known[COPY]),
      to_fla=gpu_timing.ratio(timing, known.get(FLA)),
      note=note,
      **gpu_timing.columns(timing),
      **dict.fromkeys(_JUDGED) | judged,
    )


_JUDGED = ("error_beta_1", "error_beta_2", "nonfinite")
Measure = Callable[..., Timing]
Sets = list[tuple[jax.Array, jax.Array]]


def _rivals(
  found: Base, sets: Sets, chunk_size: int, time: Measure
) -> list[Job]:
  arrays = [a for a, _ in sets]
  no_torch = gpu.missing("torch")
  no_fla = gpu.missing_fla(chunk_size)
  return [
    Job(COPY, "xla", lambda: (time(jax.jit(jnp.copy), list(zip(arrays))), {})),
    Job(TORCH_COPY, "torch", lambda: _torch_copy(arrays, time), no_torch),
    Job(FLA, "fla", lambda: _fla(found, arrays, time), no_fla),
  ]


def _ours(found: Base, sets: Sets, case: Case, time: Measure) -> tuple:
  run = compiled(case)
  return time(run, sets), _judged(found, run(*sets[0]))


def _torch_copy(arrays: list[jax.Array], time: Measure) -> tuple:
  inputs = [(gpu.shared(a),) for a in arrays]
  return time(gpu.copy, inputs, wait=gpu.wait), {}


def _fla(found: Base, arrays: list[jax.Array], time: Measure) -> tuple:
  inputs = [(gpu.shared(a),) for a in arrays]
  solve = gpu.solve_tril()
  timing = time(solve, inputs, wait=gpu.wait)
  return timing, _judged(found, gpu.returned(solve(*inputs[0])))


def _judged(found: Base, t: jax.Array) -> dict[str, Any]:
  bad = int(nonfinite(t, jnp.ones(len(t), bool)))
  return dict(zip(_JUDGED, (*errors(found, t), bad)))


@jax.jit
def nonfinite(t: jax.Array, chosen: jax.Array) -> jax.Array:
  """Entries of the chosen matrices [N] of t [N, C, C] that are not finite."""
  return jnp.sum(~jnp.isfinite(t) & chosen[:, None, None], dtype=jnp.int32)
