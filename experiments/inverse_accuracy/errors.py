"""How wrong each chunk inverse is: methods x formats x families of keys.

The truth is the float64 inverse of the same float32 matrix; an error is the
relative Frobenius error of the strictly lower part, the worst over a group.
Every approximation is certified as well (`neumann_jax.certify`), so that a
bound that did not hold would show.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from experiments.harness import progress
from experiments.harness.settings import Checked, setting
from experiments.inverse_accuracy.cases import FORMATS, Case
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.chunk_inverse.xla import count_products


@dataclasses.dataclass(frozen=True)
class InverseSettings(Checked):
  """What is measured.

  Attributes:
    seed: of the key families.
    draws: chunks per family and decay.
    chunk_size: C, a power of two.
    tokens: of each text fed to the byte model, a multiple of C.
    formats: of the operands, among `cases.FORMATS`.
  """

  seed: int = 0
  draws: int = setting(10, at_least=1)
  chunk_size: int = 64
  tokens: int = setting(1024, at_least=1)
  formats: tuple[str, ...] = setting(tuple(FORMATS), among=FORMATS, some=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_chunk_size(self.chunk_size)
    if self.tokens % self.chunk_size:
      raise ValueError(
        "tokens must be a positive multiple of chunk_size = "
        f"{self.chunk_size}, got {self.tokens}"
      )


class Group(NamedTuple):
  """Matrices that are evaluated together.

  Attributes:
    family: name of the keys, or of the model.
    beta: range of beta, as text.
    decay: minus the log decay per token, or its range, as text.
    a: [N, C, C] float32.
    envelope: [N, C, C] float32.
  """

  family: str
  beta: str
  decay: str
  a: np.ndarray
  envelope: np.ndarray


class ErrorRow(NamedTuple):
  """One method in one format on one group.

  Attributes:
    family: see Group.
    beta: see Group.
    decay: see Group.
    chunk_size: C.
    method: name of the method.
    format: name of the operands' format.
    products: C x C matrix products it takes; 0 for the solve.
    worst: worst relative Frobenius error of the strictly lower part.
    median: its median.
    entry: worst absolute error of an entry.
    certified: worst certified bound on an entry.
    violations: entries whose error exceeds their bound.
  """

  family: str
  beta: str
  decay: str
  chunk_size: int
  method: str
  format: str
  products: int
  worst: float
  median: float
  entry: float
  certified: float
  violations: int


def family_groups(
  settings: InverseSettings,
  *,
  chunk_size: int | None = None,
  betas: Sequence[tuple[float, float]] = ((0.6, 1.0), (0.0, 2.0)),
) -> list[Group]:
  """Every key family at every decay.

  Args:
    settings: seed, number of draws and chunk size.
    chunk_size: another chunk size.
    betas: ranges of the uniform write strengths.

  Returns:
    One group a range, family and decay.
  """
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
  envelope = neumann_jax.envelope(
    jnp.asarray(chunks.beta, jnp.float32),
    jnp.asarray(chunks.log_decay, jnp.float32),
  )  # [N, C, C]
  return Group(
    family, beta, decay, chunks.a.astype(np.float32), np.asarray(envelope)
  )


def study(
  groups: Sequence[Group],
  cases: Sequence[Case],
  tick: progress.Tick = progress.silent,
) -> list[ErrorRow]:
  """Measures every case on every group.

  Args:
    groups: matrices of one chunk size.
    cases: what to measure, as from `experiments.inverse_accuracy.cases`.
    tick: called before each case.

  Returns:
    One row a case and group, cases outermost.
  """
  a = np.concatenate([group.a for group in groups])  # [N, C, C]
  envelope = np.concatenate([group.envelope for group in groups])
  truth = key_families.exact_inverse(a)  # float64
  ends = np.cumsum([len(group.a) for group in groups])
  spans = [slice(e - len(g.a), e) for e, g in zip(ends, groups)]
  rows = []
  operands = jnp.asarray(a), jnp.asarray(envelope)
  for method, form, spec in cases:
    tick(f"inverse: {method}, {form}")
    x = _approximate(*operands, spec)
    bound = _certified(operands[0], x, operands[1])
    found, allowed = np.asarray(x), np.asarray(bound, np.float64)
    products = count_products(spec, a.shape[-1])
    for group, span in zip(groups, spans):
      rows.append(
        ErrorRow(
          *group[:3],
          chunk_size=a.shape[-1],
          method=method,
          format=form,
          products=products,
          **_errors(found[span], truth[span], allowed[span]),
        )
      )
  return rows


@functools.partial(jax.jit, static_argnames="spec")
def _approximate(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec
) -> jax.Array:
  return neumann_jax.inverse(a, spec, envelope=envelope)


_certified = jax.jit(neumann_jax.certify)  # one program for every spec


def _errors(
  x: np.ndarray, truth: np.ndarray, bound: np.ndarray
) -> dict[str, Any]:
  relative = key_families.relative_error(x, truth)  # [N]
  difference = np.abs(np.where(np.isfinite(x), x, np.inf) - truth)
  return {
    "worst": float(relative.max()),
    "median": float(np.median(relative)),
    "entry": float(difference.max()),
    "certified": float(bound.max()),
    "violations": int((difference > bound).sum()),
  }
