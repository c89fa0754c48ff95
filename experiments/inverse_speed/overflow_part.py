"""How often each inverse overflows, over a million matrices of all families."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import device_keys
from experiments.harness.progress import Tick
from experiments.harness.speed import timing
from experiments.inverse_speed.cases import Case, compiled
from experiments.inverse_speed.inverse_part import nonfinite

SWEPT_BETAS = ((0.6, 1.0), (1.0, 2.0))
SWEEP_DIM = 128


class SweepRow(NamedTuple):
  """Entries of T that are not finite over many matrices."""

  name: str  # of the case
  implementation: str  # "gpu" or "xla"
  beta: str  # its range, as text
  matrices: int  # how many were inverted
  nonfinite: int | None  # entries that are not finite
  must_be_zero: bool  # False for the paper's own form
  device: str  # that ran it
  note: str  # why something is missing


def sweep_part(
  settings: Any, cases: Sequence[Case], tick: Tick
) -> Iterator[SweepRow]:
  """Counts entries that are not finite over at least `sweep_count` matrices.

  Blocks have the timed part's shape, so that nothing is compiled twice; every
  case sees the same blocks. It has a row for each range of SWEPT_BETAS.
  """
  for case in cases:
    tick(f"sweep: {case.name}")
    job = functools.partial(_sweep, settings, case)
    result, note = timing.attempt(job)
    for i, beta in enumerate(SWEPT_BETAS):
      matrices, bad = result[i] if result else (0, None)
      yield SweepRow(
        case.name,
        case.implementation,
        f"{beta[0]:g} to {beta[1]:g}",
        matrices,
        bad,
        not case.paper,
        timing.device_name(),
        note,
      )


def _sweep(settings: Any, case: Case) -> list[tuple[int, int]]:
  """(matrices, entries not finite) of both ranges of beta."""
  run = compiled(case)
  tops = np.array([beta[1] for beta in SWEPT_BETAS], np.float32)
  found = []
  for block in range(-(-settings.sweep_count // settings.count)):
    key = jax.random.fold_in(jax.random.key(settings.seed), block)
    chunks = device_keys.mixture(
      key, settings.count, settings.chunk_size, SWEEP_DIM, SWEPT_BETAS
    )
    bound = jnp.where(chunks.wide, tops[1], tops[0])
    t = run(device_keys.matrices(chunks), bound)
    for chosen in (~chunks.wide, chunks.wide):
      found.append((jnp.sum(chosen), nonfinite(t, chosen)))
  counts = np.array(jax.device_get(found), np.int64).reshape(-1, 2, 2)
  return [(int(n), int(bad)) for n, bad in counts.sum(0)]
