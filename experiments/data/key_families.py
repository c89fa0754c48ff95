"""Named families of keys and gates that make or break a chunk inverse.

Random independent keys make every method look good; the failures reported
from trained models come from keys that are aligned, repeated, periodic or of
low rank, under slow decay. Drawn here by numpy in float64; `device_keys` draws
the same families on the device.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
PERIOD, RANK = 7, 4


class Chunks(NamedTuple):
  """A batch of chunks and the gates behind them, of numpy or of jax."""

  keys: Any  # [N, C, D], unit norm
  beta: Any  # [N, C]
  log_decay: Any  # [N, C], <= 0

  @property
  def a(self) -> Any:
    """The strictly lower A_ij = beta_i <k_i, k_j> exp(G_i - G_j), [N, C, C]."""
    xp = self.keys.__array_namespace__()
    gram = self.keys @ xp.swapaxes(self.keys, -1, -2)
    total = xp.cumsum(self.log_decay, axis=-1)
    exponent = xp.tril(total[..., :, None] - total[..., None, :])
    return xp.tril(self.beta[..., :, None] * gram * xp.exp(exponent), -1)


class Normal(NamedTuple):
  """Where a family's normal numbers come from; called in its own order."""

  own: Callable[[], Any]  # [N, C, D], a vector per token
  few: Callable[[int], Any]  # m -> [N, m, D], vectors that tokens share
  basis: Callable[[], Any]  # [N, RANK, D], orthonormal rows
  weights: Callable[[], Any]  # [N, C, RANK]


def shaped(family: str, normal: Normal, chunk_size: int) -> Any:
  """Unit keys [N, C, D] of one of FAMILIES, made of normal numbers.

  `cosine_c` shares one direction so that two keys have mean cosine c; `rank_4`
  draws from a four-dimensional subspace; `period_7` repeats seven independent
  keys. ValueError for an unknown family.
  """
  if family not in FAMILIES:
    raise ValueError(
      f"family must be one of {', '.join(FAMILIES)}; got {family}"
    )
  if family == "independent":
    return _unit(normal.own())
  if family == "identical":
    return _unit(normal.few(1)).repeat(chunk_size, 1)
  if family == "rank_4":
    basis = normal.basis()
    return _unit(normal.weights() @ basis)
  if family == "period_7":
    return _unit(normal.few(PERIOD))[:, np.arange(chunk_size) % PERIOD]
  cosine = float(family.removeprefix("cosine_"))
  shared = _unit(normal.few(1))
  return _unit(cosine**0.5 * shared + (1 - cosine) ** 0.5 * _unit(normal.own()))


def _unit(x: Any) -> Any:
  return x / x.__array_namespace__().linalg.norm(x, axis=-1, keepdims=True)


def keys(
  family: str, rng: np.random.Generator, count: int, chunk_size: int, dim: int
) -> np.ndarray:
  """Unit keys [count, C, D] of a named family, see `shaped`."""

  def basis() -> np.ndarray:
    columns = np.linalg.qr(rng.standard_normal((count, dim, RANK)))[0]
    return np.swapaxes(columns, -1, -2)

  normal = Normal(
    own=lambda: rng.standard_normal((count, chunk_size, dim)),
    few=lambda m: rng.standard_normal((count, m, dim)),
    basis=basis,
    weights=lambda: rng.standard_normal((count, chunk_size, RANK)),
  )
  return shaped(family, normal, chunk_size)


def draw(
  family: str,  # one of FAMILIES
  *,
  seed: int,  # the same seed gives the same chunks
  count: int,  # N, number of chunks
  chunk_size: int,  # C
  dim: int = 128,  # D, the key width
  # range of the uniform write strengths, within [0, 2]
  beta: tuple[float, float] = (0.6, 1.0),
  decay: float = 0.0,  # minus the log decay per token, >= 0
) -> Chunks:
  """Float64 chunks of a family with uniform beta and constant log decay."""
  rng = np.random.default_rng([seed, FAMILIES.index(family)])
  k = keys(family, rng, count, chunk_size, dim)
  strength = rng.uniform(*beta, size=(count, chunk_size))
  return Chunks(k, strength, np.full((count, chunk_size), -decay))


def draw_all(
  # ranges of the write strengths. **options: of `draw`, the same for all
  betas: Sequence[tuple[float, float]],
  **options: Any,
) -> Iterator[tuple[tuple[float, float], str, float, Chunks]]:
  """Every range of beta (outermost), family and decay, with its chunks."""
  for beta in betas:
    for family in FAMILIES:
      for decay in DECAYS:
        yield (
          beta,
          family,
          decay,
          draw(family, beta=beta, decay=decay, **options),
        )


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
