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
  """What is measured."""

  seed: int = 0  # of the key families
  draws: int = setting(10, at_least=1)  # chunks per family and decay
  chunk_size: int = 64  # C, a power of two
  # of each text fed to the byte model, a multiple of C
  tokens: int = setting(1024, at_least=1)
  # of the operands, among `cases.FORMATS`
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
  """Matrices that are evaluated together."""

  family: str  # name of the keys, or of the model
  beta: str  # range of beta, as text
  decay: str  # minus the log decay per token, or its range, as text
  a: np.ndarray  # [N, C, C] float32
  envelope: np.ndarray  # [N, C, C] float32


class ErrorRow(NamedTuple):
  """One method in one format on one group."""

  family: str  # see Group
  beta: str  # see Group
  decay: str  # see Group
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
  """Every key family at every decay.

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
  groups: Sequence[Group],  # matrices of one chunk size
  # what to measure, as from `experiments.inverse_accuracy.cases`
  cases: Sequence[Case],
  tick: progress.Tick = progress.silent,
) -> list[ErrorRow]:
  """Measures every case on every group.

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
