"""How wrong each chunk inverse is: methods x formats x families of keys.

The truth is the float64 inverse of the same float32 matrix; an error is the
relative Frobenius error of the strictly lower part, the worst over a group.
Every approximation is certified as well (`neumann_jax.certify`), so that a
bound that did not hold would show.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from experiments.harness import progress
from experiments.harness.processes import threads
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects.matrix_errors import MatrixErrors, Problem
from experiments.inverse_accuracy.cases import FORMATS, PAPER_CHUNKS, Case
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.chunk_inverse.xla import count_products


@dataclasses.dataclass(frozen=True)
class InverseSettings(Checked):
  """What is measured."""

  seed: int = 0  # of the key families
  draws: int = setting(10, at_least=1)  # chunks per family and decay
  chunk_size: int = 64  # C, a power of two
  # of each text fed to the byte model, a multiple of C
  tokens: int = setting(1024, at_least=1)
  # of the operands, among `cases.FORMATS`
  formats: tuple[str, ...] = setting(tuple(FORMATS), among=FORMATS, some=True)
  # chunk lengths of the paper whose setting stands beside the ladder
  paper_chunks: tuple[int, ...] = setting(PAPER_CHUNKS, among=PAPER_CHUNKS)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_chunk_size(self.chunk_size)
    if self.tokens % self.chunk_size:
      raise ValueError(
        "tokens must be a positive multiple of chunk_size = "
        f"{self.chunk_size}, got {self.tokens}"
      )


class Group(NamedTuple):
  """Matrices that are evaluated together."""

  family: str  # name of the keys, or of the model
  beta: str  # range of beta, as text
  decay: str  # minus the log decay per token, or its range, as text
  a: np.ndarray  # [N, C, C] float32
  envelope: np.ndarray  # [N, C, C] float32


class ErrorRow(NamedTuple):
  """One method in one format on one group."""

  family: str  # these three as of Group
  beta: str
  decay: str
  chunk_size: int  # C
  method: str  # name of the method
  format: str  # name of the operands' format
  products: int  # C x C matrix products it takes; 0 for the solve
  worst: float  # worst relative Frobenius error of the strictly lower part
  median: float  # its median
  entry: float  # worst absolute error of an entry
  certified: float  # worst certified bound on an entry
  violations: int  # entries whose error exceeds their bound


def family_groups(
  settings: InverseSettings,  # seed, number of draws and chunk size
  *,
  chunk_size: int | None = None,  # another chunk size
  # ranges of the uniform write strengths
  betas: Sequence[tuple[float, float]] = ((0.6, 1.0), (0.0, 2.0)),
) -> list[Group]:
  """A group for every range of beta, family and decay."""
  drawn = key_families.draw_all(
    betas,
    seed=settings.seed,
    count=settings.draws,
    chunk_size=chunk_size or settings.chunk_size,
  )
  return [
    group_of(
      family, chunks, beta=f"{beta[0]:g} to {beta[1]:g}", decay=f"{decay:g}"
    )
    for beta, family, decay, chunks in drawn
  ]


def group_of(
  family: str, chunks: key_families.Chunks, *, beta: str, decay: str
) -> Group:
  """Chunks as float32 matrices with their envelopes."""
  gates = (jnp.asarray(x, jnp.float32) for x in chunks[1:])
  envelope = np.asarray(neumann_jax.envelope(*gates))  # [N, C, C]
  return Group(family, beta, decay, chunks.a.astype(np.float32), envelope)


def study(
  groups: Sequence[Group],  # matrices of one chunk size
  cases: Sequence[Case],  # what to measure
  tick: progress.Tick = progress.silent,
  workers: int = 2,  # cases at a time: compiling one takes a core
) -> list[ErrorRow]:
  """A row for every case and group, cases outermost."""
  a = np.concatenate([group.a for group in groups])  # [N, C, C]
  envelope = np.concatenate([group.envelope for group in groups])
  truth = key_families.exact_inverse(a)
  problem = Problem(jnp.asarray(a), jnp.asarray(envelope), truth)

  def measured(case: Case) -> tuple[Case, list[ErrorRow]]:
    tick(f"inverse: {case[0]}, {case[1]}")
    return case, _rows(groups, case, problem)

  found = dict(threads.in_threads(measured, cases, workers))
  return [row for case in cases for row in found[case]]


def _rows(
  groups: Sequence[Group], case: Case, problem: Problem
) -> list[ErrorRow]:
  """One case on every group."""
  method, form, spec = case
  found = problem.errors(spec, "auto", once=True)
  size = problem.a.shape[-1]
  products = count_products(spec, size)
  ends = np.cumsum([len(group.a) for group in groups])
  rows = []
  for group, end in zip(groups, ends):
    own = MatrixErrors(*(x[end - len(group.a) : end] for x in found))
    rows.append(
      ErrorRow(
        *group[:3],
        chunk_size=size,
        method=method,
        format=form,
        products=products,
        worst=float(own.error.max()),
        median=float(np.median(own.error)),
        entry=float(own.entry.max()),
        certified=float(own.certified_entry.max()),
        violations=int(own.violations.sum()),
      )
    )
  return rows
