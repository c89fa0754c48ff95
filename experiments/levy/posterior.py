"""Exact posterior draws of signals by Gibbs sampling, in float64.

With increments u of variances q, y = B u + n for B = A L, L the running sum:
u | q, y is Gaussian and is drawn by solving one m x m system, whatever q. Where
increments may be 0, whether each is comes first, one after the other with u
integrated out: given u = 0 the chain would never leave it. Chains of N signals
walk side by side. The scheme of arXiv 2509.12821, from its description.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from experiments.levy.laws import Law


class Measured(NamedTuple):
  """Measurements of N signals of d points."""

  matrix: np.ndarray  # A, [m, d]
  y: np.ndarray  # [N, m]
  noise_std: float


class Exact(NamedTuple):
  """Of every signal's posterior."""

  mean: np.ndarray  # [N, d], of the conditional means: less noise than of draws
  samples: np.ndarray  # [K, N, d], evenly from the chain


def sample(
  law: Law,
  measured: Measured,
  rng: np.random.Generator,
  *,
  burn_in: int,
  sweeps: int,
  keep: int,
) -> Exact:
  """Runs the chains.

  Args:
    law: of the increments.
    measured: the signals' measurements.
    rng: of the chains.
    burn_in: sweeps that are left out.
    sweeps: those that count.
    keep: draws to return, at most `sweeps`.

  Returns:
    The posterior means and `keep` draws.
  """
  count = len(measured.y)
  mean = np.zeros((count, measured.matrix.shape[1]))
  kept = []
  places = set(np.linspace(0, sweeps - 1, keep).astype(int))
  for sweep, (x, center) in enumerate(_chain(law, measured, rng)):
    if (number := sweep - burn_in) >= 0:
      mean += center / sweeps
      if number in places:
        kept.append(x)
    if number == sweeps - 1:
      break
  return Exact(mean, np.stack(kept))


def _chain(
  law: Law, measured: Measured, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """A draw of x and its mean given the variances, [N, d] each, for ever."""
  b = np.cumsum(measured.matrix[:, ::-1], axis=1)[:, ::-1]  # A L, [m, d]
  shape = (len(measured.y), b.shape[1])
  slab = law.start(shape)
  there = np.ones(shape, bool)
  while True:
    if law.share < 1:
      there = _which_jump(law.share, slab, there, b, measured, rng)
    u, mean = _increments(slab * there, b, measured, rng)
    slab = law.mixed(rng, u)
    yield np.cumsum(u, axis=1), np.cumsum(mean, axis=1)


def _increments(
  q: np.ndarray,
  b: np.ndarray,
  measured: Measured,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """A draw of u | q, y and its mean, [N, d] each.

  The draw is one of the prior, moved by what its own measurement misses of y.
  """
  noise = measured.noise_std
  prior = np.sqrt(q) * rng.standard_normal(q.shape)
  seen = prior @ b.T + noise * rng.standard_normal(measured.y.shape)
  right = np.stack([measured.y - seen, measured.y], -1)  # [N, m, 2]
  solved = np.linalg.solve(_covariance(q, b, noise), right)
  moved = q[..., None] * (b.T @ solved)  # [N, d, 2]
  # Exactly 0 where q is: the atom is told by it.
  return prior + moved[..., 0], moved[..., 1]


def _covariance(q: np.ndarray, b: np.ndarray, noise: float) -> np.ndarray:
  """noise^2 I + B diag(q) B^T, [N, m, m]."""
  return (b * q[:, None]) @ b.T + noise**2 * np.eye(len(b))


def _which_jump(
  share: float,
  slab: np.ndarray,
  there: np.ndarray,
  b: np.ndarray,
  measured: Measured,
  rng: np.random.Generator,
) -> np.ndarray:
  """Which increments are not 0, [N, d], one after the other, u integrated out.

  The covariance's inverse follows every change by a term of rank 1.
  """
  inverse = np.linalg.inv(_covariance(slab * there, b, measured.noise_std))
  there = there.copy()
  prior = np.log(share) - np.log1p(-share)
  chance = rng.uniform(size=there.shape)
  for k, column in enumerate(b.T):
    along = inverse @ column  # [N, m]
    power, match = along @ column, np.einsum("nm,nm->n", along, measured.y)
    now, q = there[:, k], slab[:, k]
    # Of the covariance without increment k: Sherman and Morrison.
    rest = 1 - now * q * power
    power0, match0 = power / rest, match / rest
    gain = 1 + q * power0
    odds = prior - np.log(gain) / 2 + q * match0**2 / gain / 2
    new = np.log(chance[:, k]) - np.log1p(-chance[:, k]) < odds
    change = q * (new.astype(float) - now)
    factor = change / (1 + change * power)
    inverse -= factor[:, None, None] * along[:, :, None] * along[:, None]
    there[:, k] = new
  return there
