"""How wrong each chunk inverse is: methods x formats x families of keys.

The truth is the float64 inverse of the same float32 matrix; an error is the
relative Frobenius error of the strictly lower part, the worst over a group.
Every approximation is certified as well (`neumann_jax.certify`), so that a
bound that did not hold would show.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from experiments.harness import progress
from experiments.inverse_accuracy.cases import Case
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.chunk_inverse.xla import count_products


@dataclasses.dataclass(frozen=True)
class InverseSettings:
  """What the study draws.

  Attributes:
    seed: of the key families.
    draws: chunks per family and decay, >= 1.
    chunk_size: C, a power of two.
    tokens: of each text fed to the byte model, a multiple of C.
  """

  seed: int = 0
  draws: int = 10
  chunk_size: int = 64
  tokens: int = 1024

  def __post_init__(self) -> None:
    if self.draws < 1:
      raise ValueError(f"draws must be at least 1, got {self.draws}")
    check_chunk_size(self.chunk_size)
    if self.tokens < 1 or self.tokens % self.chunk_size:
      raise ValueError(
        "tokens must be a positive multiple of chunk_size = "
        f"{self.chunk_size}, got {self.tokens}"
      )


class Group(NamedTuple):
  """Matrices that are judged together.

  Attributes:
    family: name of the keys, or of the model.
    beta: range of beta, as text.
    decay: minus the log decay of a token, or its range, as text.
    a: [N, C, C] float32.
    envelope: [N, C, C] float32.
  """

  family: str
  beta: str
  decay: str
  a: np.ndarray
  envelope: np.ndarray


class Row(NamedTuple):
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
  return [
    group_of(
      family,
      key_families.draw(
        family,
        seed=settings.seed,
        count=settings.draws,
        chunk_size=chunk_size or settings.chunk_size,
        beta=beta,
        decay=decay,
      ),
      beta=f"{beta[0]:g} to {beta[1]:g}",
      decay=f"{decay:g}",
    )
    for beta in betas
    for family in key_families.FAMILIES
    for decay in key_families.DECAYS
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
) -> list[Row]:
  """Measures every case on every group.

  Args:
    groups: matrices of one chunk size.
    cases: what to measure, as from `inverse_cases`.
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
  for method, form, spec in cases:
    tick(f"inverse: {method}, {form}")
    x, bound = _approximate(jnp.asarray(a), jnp.asarray(envelope), spec)
    found, allowed = np.asarray(x), np.asarray(bound, np.float64)
    products = count_products(spec, a.shape[-1])
    for group, span in zip(groups, spans):
      rows.append(
        Row(
          *group[:3],
          chunk_size=a.shape[-1],
          method=method,
          format=form,
          products=products,
          **_judge(found[span], truth[span], allowed[span]),
        )
      )
  return rows


def _approximate(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec
) -> tuple[jax.Array, jax.Array]:
  @jax.jit
  def run(a: jax.Array, envelope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = neumann_jax.inverse(a, spec, envelope=envelope)
    return x, neumann_jax.certify(a, x, envelope)

  return run(a, envelope)


def _judge(
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
