"""The exact denoiser of a Levy process, by Gibbs sampling on the device.

For white noise the signal is a hidden Markov chain of one number: given the
increments' variances a filter and a smoother give the conditional mean in O(d).
The mean of those over a chain is E[x0 | x] to its Monte Carlo error, and its
derivative is the covariance over sigma^2 (Tweedie), from the same chain. Which
increments are not 0 is drawn with the signal integrated out, from what the
points after tell of x_k (Gerlach, Carter and Kohn 2000).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from experiments.levy import laws
from experiments.levy.laws import Law

_TINY = 1e-12  # of variances: a signal that is known to be 0 so far


class Chain(NamedTuple):
  """What a chain leaves: S sweeps, d points, M signals."""

  q: jax.Array  # variances of increments, [S, d, M]
  means: jax.Array  # E[x | q, z], [S, d, M]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Denoiser:
  """E[x0 | x0 + sigma n = x] of signals as images [M, 1, d, 1].

  A pytree without leaves. The random numbers come of x: the same x gives the
  same bits, and no two levels share an error.

  Attributes:
    law: of the increments, in the images' unit.
    burn_in: sweeps that are left out.
    sweeps: those that count; a Gaussian law needs one and none before it.
  """

  law: Law = dataclasses.field(metadata={"static": True})
  burn_in: int = dataclasses.field(metadata={"static": True})
  sweeps: int = dataclasses.field(metadata={"static": True})

  def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """[M, 1, d, 1] and [M] -> [M, 1, d, 1]."""
    z = x[:, 0, :, 0].T  # [d, M]
    return _mean(self, z, sigma).T[:, None, :, None]

  def chain(self, z: jax.Array, sigma: jax.Array) -> Chain:
    """The Gibbs sampler given z = x + sigma n, [d, M]."""
    seed = lax.bitcast_convert_type(jnp.sum(z * sigma), jnp.int32)
    key = jax.random.fold_in(jax.random.key(0), seed)
    start = self.law.variance / self.law.share
    state = jnp.full(z.shape, start), jnp.ones(z.shape, bool)

    def sweep(
      state: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Chain]:
      slab, there = state
      keys = jax.random.split(key, 4)
      if self.law.share < 1:
        there = _which_jump(keys[0], self.law.share, slab, there, z, sigma)
      q = jnp.where(there, slab, 0.0)
      mean, x = _draw(keys[1], q, z, sigma)
      u = jnp.diff(x, axis=0, prepend=0.0)
      return (_mixed(keys[2], self.law, u, there), there), Chain(q, mean)

    exact = isinstance(self.law, laws.Gaussian)
    burn_in, sweeps = (0, 1) if exact else (self.burn_in, self.sweeps)
    keys = jax.random.split(key, burn_in + sweeps)
    state, _ = lax.scan(
      lambda s, k: (sweep(s, k)[0], None), state, keys[:burn_in]
    )
    return lax.scan(sweep, state, keys[burn_in:])[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mean(denoiser: Denoiser, z: jax.Array, sigma: jax.Array) -> jax.Array:
  return jnp.mean(denoiser.chain(z, sigma).means, axis=0)


@_mean.defjvp
def _product(
  denoiser: Denoiser,
  primals: tuple[jax.Array, jax.Array],
  tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """Cov[x | z] t / sigma^2; sigma is a level, with no derivative asked for.

  The covariance is the mean of those given q, sigma^2 times the smoother, and
  the covariance of the means given q.
  """
  (z, sigma), (t, _) = primals, tangents
  q, means = denoiser.chain(z, sigma)
  mean = jnp.mean(means, axis=0)
  away = (means - mean) / sigma  # [S, d, M]
  smooth = jax.vmap(lambda q: smoothed(q, t[..., None], sigma)[..., 0])(q)
  freedom = max(len(q) - 1, 1)  # of S means about their own
  along = jnp.sum(away * t, axis=1, keepdims=True)  # [S, 1, M]
  return mean, jnp.mean(smooth, axis=0) + jnp.sum(away * along, 0) / freedom


def smoothed(q: jax.Array, z: jax.Array, sigma: jax.Array) -> jax.Array:
  """E[x | q, z], linear in z: [d, M], [d, M, R], [M] -> [d, M, R]."""

  def filtered(
    state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
  ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (mean, variance), (q, z) = state, now
    ahead = variance + q
    gain = ahead / (ahead + sigma**2)
    state = mean + gain[:, None] * (z - mean), (1 - gain) * ahead
    return state, state

  def smooth(
    later: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    mean, variance, q = now
    # 1 where the next increment is 0, and where x_k itself is known to be 0.
    weight = (variance + _TINY) / (variance + q + _TINY)
    x = mean + weight[:, None] * (later - mean)
    return x, x

  start = jnp.zeros_like(z[0]), jnp.zeros_like(q[0])
  _, (mean, variance) = lax.scan(filtered, start, (q, z))
  steps = mean[:-1], variance[:-1], q[1:]
  _, before = lax.scan(smooth, mean[-1], steps, reverse=True)
  return jnp.concatenate([before, mean[-1:]])


def _draw(
  key: jax.Array, q: jax.Array, z: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """E[x | q, z] and a draw of x | q, z, [d, M] each."""
  keys = jax.random.split(key)
  prior = jnp.cumsum(jnp.sqrt(q) * jax.random.normal(keys[0], z.shape), 0)
  seen = prior + sigma * jax.random.normal(keys[1], z.shape)
  both = smoothed(q, jnp.stack([z, z - seen], -1), sigma)  # [d, M, 2]
  return both[..., 0], prior + both[..., 1]


def _which_jump(
  key: jax.Array,
  share: float,
  slab: jax.Array,
  there: jax.Array,
  z: jax.Array,
  sigma: jax.Array,
) -> jax.Array:
  """Which increments are not 0, given the others, x integrated out: [d, M].

  The points from k on tell of x_k what a measurement `center` of precision
  `known` would.
  """

  def told(
    state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
  ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (known, center), (z, q) = state, now
    total = known + sigma**-2
    center = center + (z - center) / (total * sigma**2)
    return (total / (1 + q * total), center), (total, center)

  zero = jnp.zeros_like(z[0])
  _, (known, center) = lax.scan(
    told, (zero, zero), (z, jnp.where(there, slab, 0.0)), reverse=True
  )
  prior = jnp.log(share) - jnp.log1p(-share)
  chance = jax.random.logistic(key, z.shape)

  def choose(
    state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]
  ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    (mean, variance), (z, slab, known, center, chance) = state, now
    square = (center - mean) ** 2
    without = 1 / (variance + 1 / known)
    with_it = 1 / (variance + slab + 1 / known)
    odds = (
      prior + (jnp.log(with_it / without) - square * (with_it - without)) / 2
    )
    there = chance < odds
    ahead = variance + jnp.where(there, slab, 0.0)
    gain = ahead / (ahead + sigma**2)
    return (mean + gain * (z - mean), (1 - gain) * ahead), there

  steps = (z, slab, known, center, chance)
  return lax.scan(choose, (zero, zero), steps)[1]


def _mixed(
  key: jax.Array, law: Law, u: jax.Array, there: jax.Array
) -> jax.Array:
  """Variances given increments, as `Law.mixed` draws them in NumPy."""
  if isinstance(law, laws.Gaussian):
    return jnp.full(u.shape, law.variance)
  if isinstance(law, laws.Student):
    chi = 2 * jax.random.gamma(key, (law.degrees + 1) / 2, u.shape)
    if law.degrees % 2:  # a sum of exponentials: without gamma's rejections
      half = (law.degrees + 1) // 2
      chi = 2 * jnp.sum(jax.random.exponential(key, (half, *u.shape)), axis=0)
    return (law.degrees * law.scale**2 + u**2) / chi
  keys = jax.random.split(key)
  found = _inverse_gaussian(keys[0], law.scale, u)
  if law.share < 1:
    fresh = 2 * law.scale**2 * jax.random.exponential(keys[1], u.shape)
    found = jnp.where(there, found, fresh)
  return found


def _inverse_gaussian(key: jax.Array, scale: float, u: jax.Array) -> jax.Array:
  """1 / v of v inverse Gaussian, mean 1 / (scale |u|), shape 1 / scale^2.

  The method of Michael, Schucany and Haas 1976 for w = 1 / v, its smaller root
  by the quotient that does not cancel.
  """
  keys = jax.random.split(key)
  inverse_mean = scale * jnp.maximum(jnp.abs(u), 1e-6 * scale)
  t = scale**2 * jax.random.normal(keys[0], u.shape) ** 2 / (2 * inverse_mean)
  ratio = 1 + t + jnp.sqrt(t * (t + 2))  # mean over the smaller root
  smaller = jax.random.uniform(keys[1], u.shape) < ratio / (1 + ratio)
  return jnp.where(smaller, ratio, 1 / ratio) * inverse_mean
