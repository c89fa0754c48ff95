"""The inverse alone in the speed study: beside copies of its bytes, and fla.

The part returns rows, never prints, and goes on where a case fails: the row
then says why. Data come from every key family, so that nothing is timed on
easy numbers.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import key_families
from experiments.harness.progress import Tick
from experiments.harness.speed import timing
from experiments.harness.speed.timing import Job
from experiments.inverse_speed.cases import Case, compiled
from experiments.peers import gpu

BETAS = ((0.6, 1.0), (0.0, 2.0))  # as the study of errors has them
COPY, TORCH_COPY, FLA = "copy", "torch copy", "fla solve_tril"
ERRORS = ("error_beta_1", "error_beta_2")  # the worst by range of BETAS

Sets = list[tuple[jax.Array, jax.Array]]


class Base(NamedTuple):
  """The distinct matrices that a timed batch repeats."""

  a: np.ndarray  # [M, C, C] float32
  bound: np.ndarray  # [M] float32, the largest beta of the range
  truth: np.ndarray  # [M, C, C] float64 inverses


def base_count(draws: int) -> int:
  """Matrices in `base(draws=draws)`."""
  families, decays = len(key_families.FAMILIES), len(key_families.DECAYS)
  return len(BETAS) * families * decays * draws


def base(seed: int, draws: int, chunk_size: int) -> Base:
  """`draws` chunks of every range of beta (outermost), family and decay."""
  drawn = key_families.draw_all(
    BETAS, seed=seed, count=draws, chunk_size=chunk_size
  )
  a = np.concatenate([chunks.a.astype(np.float32) for *_, chunks in drawn])
  tops = np.array([beta[1] for beta in BETAS], np.float32)
  bound = np.repeat(tops, len(a) // len(BETAS))
  return Base(a, bound, key_families.exact_inverse(a))


def input_sets(found: Base, count: int) -> Sets:
  """The base over and over, `count` in all; every set begins elsewhere."""
  a, bound, m = jnp.asarray(found.a), jnp.asarray(found.bound), len(found.a)
  sets = []
  for i in range(timing.INPUT_SETS):
    start = i * (m // timing.INPUT_SETS)
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
) -> Iterator[dict[str, Any]]:
  """Times the copies, fla and every case, in this order, on the same buffers.

  Beside its times a row has how many times the copy's and fla's they are,
  ERRORS, and the entries of all outputs that are not finite.
  """
  tick("inverse: drawing")
  found = base(settings.seed, settings.draws, settings.chunk_size)
  sets = input_sets(found, settings.count)
  about = {"matrices": settings.count, "chunk_size": settings.chunk_size}
  known: dict[str, Any] = {}
  for job in _jobs(settings, found, sets, cases):
    tick(f"inverse: {job.name}")
    row = timing.row(job, about, ("to_copy", "to_fla", *ERRORS, "nonfinite"))
    known[job.name] = row
    row["to_copy"] = timing.ratio(row, known[COPY])
    row["to_fla"] = timing.ratio(row, known.get(FLA))
    yield row


def _jobs(
  settings: Any, found: Base, sets: Sets, cases: Sequence[Case]
) -> Iterator[Job]:
  arrays = [(a,) for a, _ in sets]

  def copy() -> tuple:
    return settings.measure(jax.jit(jnp.copy), arrays), {}

  def torch_copy() -> tuple:
    return gpu.measured(settings.measure, gpu.copy, arrays)[0], {}

  def fla() -> tuple:
    taken, t = gpu.measured(settings.measure, gpu.solve_tril(), arrays)
    return taken, _errors(found, gpu.returned(t))

  def ours(case: Case) -> tuple:
    run = compiled(case)
    return settings.measure(run, sets), _errors(found, run(*sets[0]))

  yield Job(COPY, "xla", copy)
  yield Job(TORCH_COPY, "torch", torch_copy, gpu.missing("torch"))
  yield Job(FLA, "fla", fla, gpu.missing_fla(settings.chunk_size))
  for case in cases:
    yield Job(case.name, case.implementation, functools.partial(ours, case))


def _errors(found: Base, t: jax.Array) -> dict[str, Any]:
  bad = int(nonfinite(t, jnp.ones(len(t), bool)))
  return dict(zip(ERRORS, errors(found, t))) | {"nonfinite": bad}


@jax.jit
def nonfinite(t: jax.Array, chosen: jax.Array) -> jax.Array:
  """Entries of the chosen matrices [N] of t [N, C, C] that are not finite."""
  return jnp.sum(~jnp.isfinite(t) & chosen[:, None, None], dtype=jnp.int32)
