"""Named families of keys and gates that make or break a chunk inverse.

Random independent keys make every method look good; the failures reported
from trained models come from keys that are aligned, repeated, periodic or of
low rank, under slow decay. Everything here is numpy in float64.
"""

import dataclasses

import numpy as np

FAMILIES = (
  "independent",
  "cosine_0.3",
  "cosine_0.5",
  "cosine_0.7",
  "cosine_0.95",
  "identical",
  "rank_4",
  "period_7",
)
DECAYS = (0.0, 0.001, 0.01)


@dataclasses.dataclass(frozen=True)
class Chunks:
  """A batch of chunks and the gates behind them.

  Attributes:
    keys: [N, C, D], unit norm.
    beta: [N, C].
    log_decay: [N, C], <= 0.
  """

  keys: np.ndarray
  beta: np.ndarray
  log_decay: np.ndarray

  @property
  def a(self) -> np.ndarray:
    """The strictly lower A_ij = beta_i <k_i, k_j> exp(G_i - G_j), [N, C, C]."""
    gram = self.keys @ np.swapaxes(self.keys, -1, -2)
    total = np.cumsum(self.log_decay, axis=-1)
    exponent = np.tril(total[..., :, None] - total[..., None, :])
    return np.tril(self.beta[..., :, None] * gram * np.exp(exponent), -1)


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def keys(
  family: str, rng: np.random.Generator, count: int, chunk_size: int, dim: int
) -> np.ndarray:
  """Unit keys [count, C, D] of a named family.

  Args:
    family: one of FAMILIES. `cosine_c` shares one direction so that two keys
      have mean cosine c; `rank_4` draws from a four-dimensional subspace;
      `period_7` repeats seven independent keys.
    rng: source of randomness.
    count: number of chunks.
    chunk_size: C.
    dim: D, the key width.

  Raises:
    ValueError: if the family is unknown.
  """
  shape = (count, chunk_size, dim)
  if family == "independent":
    return _unit(rng.standard_normal(shape))
  if family.startswith("cosine_"):
    cosine = float(family.removeprefix("cosine_"))
    shared = _unit(rng.standard_normal((count, 1, dim)))
    own = _unit(rng.standard_normal(shape))
    return _unit(np.sqrt(cosine) * shared + np.sqrt(1 - cosine) * own)
  if family == "identical":
    one = _unit(rng.standard_normal((count, 1, dim)))
    return np.broadcast_to(one, shape).copy()
  if family == "rank_4":
    basis = np.linalg.qr(rng.standard_normal((count, dim, 4)))[0]
    weights = rng.standard_normal((count, chunk_size, 4))
    return _unit(weights @ np.swapaxes(basis, -1, -2))
  if family == "period_7":
    seven = _unit(rng.standard_normal((count, 7, dim)))
    return seven[:, np.arange(chunk_size) % 7]
  raise ValueError(f"family must be one of {', '.join(FAMILIES)}; got {family}")


def draw(
  family: str,
  *,
  seed: int,
  count: int,
  chunk_size: int,
  dim: int = 128,
  beta: tuple[float, float] = (0.6, 1.0),
  decay: float = 0.0,
) -> Chunks:
  """Draws chunks of one family with uniform beta and constant log decay.

  Args:
    family: one of FAMILIES.
    seed: the same seed gives the same chunks.
    count: N, number of chunks.
    chunk_size: C.
    dim: D, the key width.
    beta: range of the uniform write strengths, within [0, 2].
    decay: minus the log decay of a token, >= 0.

  Returns:
    The chunks, in float64.
  """
  rng = np.random.default_rng([seed, FAMILIES.index(family)])
  k = keys(family, rng, count, chunk_size, dim)
  strength = rng.uniform(*beta, size=(count, chunk_size))
  return Chunks(k, strength, np.full((count, chunk_size), -decay))


def exact_inverse(a: np.ndarray) -> np.ndarray:
  """The float64 inverse of I + A by forward substitution, [..., C, C]."""
  a = np.tril(np.asarray(a, np.float64), -1)
  c = a.shape[-1]
  t = np.broadcast_to(np.eye(c), a.shape).copy()
  for i in range(1, c):
    t[..., i, :] -= np.einsum("...j,...jk->...k", a[..., i, :i], t[..., :i, :])
  return t


def relative_error(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
  """Relative Frobenius error of the strictly lower part, [...]; never NaN.

  A matrix with an entry that is not finite counts as infinitely wrong.
  """
  x = np.tril(np.asarray(x, np.float64), -1)
  truth = np.tril(truth, -1)
  finite = np.isfinite(x).all((-1, -2))
  x = np.where(finite[..., None, None], x, 0)
  error = np.linalg.norm(x - truth, axis=(-1, -2))
  size = np.linalg.norm(truth, axis=(-1, -2))
  return np.where(finite, error / np.maximum(size, 1e-300), np.inf)
