"""A mixture of isotropic Gaussians on images: exact denoiser and posterior.

The smallest prior that is not Gaussian and still has everything in closed
form, so that a sampler can be tested where the denoiser is nonlinear.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.base import Denoiser
from posterior_jax.priors.arguments import check_arguments
from posterior_jax.short_repr import short_repr

_HIGHEST = lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
  """`x0 ~ sum_k weights[k] N(means[k], std[k]^2 I)`, by `gaussian_mixture`.

  Attributes:
    weights: [K], > 0, sum 1.
    means: [K, H, W, C].
    std: [K], > 0, in pixel units.
  """

  weights: jax.Array
  means: jax.Array
  std: jax.Array

  __repr__ = short_repr

  @property
  def denoise(self) -> Denoiser:
    """E[x0 | x] as a function whose arrays are leaves: no retrace for new.

    Takes M * K * H * W * C numbers of memory.
    """
    return jax.tree_util.Partial(_denoise, self)

  def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Exact draws [*shape, H, W, C]."""
    key_which, key_noise = jax.random.split(key)
    which = jax.random.categorical(
      key_which, jnp.log(self.weights), shape=shape
    )
    mean = self.means[which]
    std = self.std[which][..., None, None, None]
    return mean + std * jax.random.normal(key_noise, mean.shape, mean.dtype)


class MixturePosterior(NamedTuple):
  """p(x0 | y), again a mixture; D = H * W * C, pixels in row-major order.

  Attributes:
    weights: [K], sum 1.
    means: [K, D].
    roots: [K, D, D], R of the covariance R R^T: unlike it, they keep a variance
      far below the largest one.
  """

  weights: jax.Array
  means: jax.Array
  roots: jax.Array

  @property
  def covariances(self) -> jax.Array:
    """R R^T, [K, D, D]."""
    return jnp.einsum(
      "kij,klj->kil", self.roots, self.roots, precision=_HIGHEST
    )

  @property
  def mean(self) -> jax.Array:
    """E[x0 | y], [D]."""
    return jnp.matmul(self.weights, self.means, precision=_HIGHEST)

  def sample(self, key: jax.Array, count: int) -> jax.Array:
    """Exact draws [count, D]."""
    key_which, key_noise = jax.random.split(key)
    which = jax.random.categorical(
      key_which, jnp.log(self.weights), shape=(count,)
    )
    means = self.means[which]  # [count, D]
    white = jax.random.normal(key_noise, means.shape, means.dtype)
    return means + jnp.einsum(
      "nij,nj->ni", self.roots[which], white, precision=_HIGHEST
    )


def gaussian_mixture(
  weights: jax.Array, means: jax.Array, std: jax.Array | float
) -> GaussianMixture:
  """A checked `GaussianMixture`.

  Args:
    weights: [K], > 0; scaled to sum 1.
    means: [K, H, W, C].
    std: scalar or [K], > 0, in pixel units.

  Raises:
    ValueError: for a wrong rank, or a value that is not finite or not
      positive; values are read only where they are known, not when traced.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> means = jnp.stack([jnp.ones((2, 2, 1)), -jnp.ones((2, 2, 1))])
    >>> prior = pj.priors.gaussian_mixture(jnp.ones(2), means, 0.1)
    >>> x0 = prior.denoise(0.5 * jnp.ones((1, 2, 2, 1)), jnp.ones(1))
    >>> x0.shape
    (1, 2, 2, 1)
  """
  weights, means = jnp.asarray(weights), jnp.asarray(means)
  if not jnp.issubdtype(means.dtype, jnp.floating):
    means = means.astype(jnp.float32)
  std = jnp.asarray(std, means.dtype)
  if means.ndim != 4:
    raise ValueError(f"means must have shape [K, H, W, C], got {means.shape}")
  count = means.shape[:1]
  if weights.shape != count:
    raise ValueError(
      f"weights must have shape {count}, one per mean, got {weights.shape}"
    )
  if std.shape not in ((), count):
    raise ValueError(f"std must be a scalar or {count}, got {std.shape}")
  for name, value in (("weights", weights), ("std", std)):
    if not isinstance(value, jax.core.Tracer):
      found = np.asarray(value)
      if not (np.isfinite(found).all() and (found > 0).all()):
        raise ValueError(f"{name} must be positive and finite everywhere")
  if not isinstance(means, jax.core.Tracer) and not np.isfinite(means).all():
    raise ValueError("means must be finite everywhere")
  return GaussianMixture(
    weights / jnp.sum(weights), means, jnp.broadcast_to(std, count)
  )


def mixture_posterior(
  prior: GaussianMixture, matrix: jax.Array, y: jax.Array, noise_std: float
) -> MixturePosterior:
  """The exact posterior for y = matrix x0 + noise_std n, in small dimensions.

    weights ~ w_k N(y; A m_k, s_k^2 A A^T + s^2 I), and per component the
    Gaussian posterior, by the singular value decomposition of A.

  Dense, K D^2 numbers; meant for D up to about 1000.

  Args:
    prior: D = H * W * C.
    matrix: A, [m, D], on row-major images.
    y: [m].
    noise_std: > 0.

  Returns:
    The posterior.

  Raises:
    ValueError: if the shapes do not fit or noise_std is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> means = jnp.stack([jnp.ones((1, 2, 1)), -jnp.ones((1, 2, 1))])
    >>> prior = pj.priors.gaussian_mixture(jnp.ones(2), means, 0.1)
    >>> exact = pj.priors.mixture_posterior(
    ...   prior, jnp.array([[1.0, 0.0]]), jnp.array([0.9]), 0.1
    ... )
    >>> [round(float(w), 3) for w in exact.weights]
    [1.0, 0.0]
  """
  means = prior.means.reshape(prior.means.shape[0], -1)  # [K, D]
  size = means.shape[1]
  if matrix.ndim != 2 or matrix.shape[1] != size:
    raise ValueError(f"matrix must have shape [m, {size}], got {matrix.shape}")
  if y.shape != matrix.shape[:1]:
    raise ValueError(f"y must have shape {matrix.shape[:1]}, got {y.shape}")
  if not noise_std > 0:
    raise ValueError(f"noise_std must be positive, got {noise_std}")
  return _posterior(prior, matrix, y, jnp.asarray(noise_std, means.dtype))


@jax.jit
def _posterior(
  prior: GaussianMixture, matrix: jax.Array, y: jax.Array, noise_std: jax.Array
) -> MixturePosterior:
  """One program: eagerly, each of its 40 operations compiles its own."""
  means = prior.means.reshape(prior.means.shape[0], -1)  # [K, D]
  size = means.shape[1]
  left, values, right = jnp.linalg.svd(matrix)  # [m, m], [min], [D, D]
  noise = noise_std**2
  seen = jnp.pad(values, (0, y.size - values.size))  # [m]
  known = jnp.pad(values, (0, size - values.size))  # [D]

  def one(mean: jax.Array, std: jax.Array) -> tuple[jax.Array, ...]:
    misfit = y - jnp.matmul(matrix, mean, precision=_HIGHEST)
    inside = jnp.matmul(left.T, misfit, precision=_HIGHEST)  # [m]
    spread = std**2 * seen**2 + noise
    evidence = -0.5 * jnp.sum(inside**2 / spread + jnp.log(spread))
    gain = std**2 * values / spread[: values.size]
    step = jnp.pad(gain * inside[: values.size], (0, size - values.size))
    shift = jnp.matmul(right.T, step, precision=_HIGHEST)
    # Not std^2 - gain: the difference of two that agree in all digits.
    variance = std**2 * noise / (std**2 * known**2 + noise)
    return evidence, mean + shift, right.T * jnp.sqrt(variance)

  evidence, means, roots = jax.vmap(one)(means, prior.std)
  weights = jax.nn.softmax(jnp.log(prior.weights) + evidence)
  return MixturePosterior(weights, means, roots)


def _denoise(
  prior: GaussianMixture, x: jax.Array, sigma: jax.Array
) -> jax.Array:
  """sum_k r_k(x) (m_k + s_k^2 / (s_k^2 + sigma^2) (x - m_k)).

  r is the posterior of the component; x [M, H, W, C], sigma [M].
  """
  check_arguments(x, sigma, prior.means.shape[1:])
  size = prior.means[0].size
  variance = prior.std**2 + sigma[:, None] ** 2  # [M, K]
  offset = x[:, None] - prior.means  # [M, K, H, W, C]
  distance = jnp.sum(offset**2, axis=(-3, -2, -1))
  score = -0.5 * (distance / variance + size * jnp.log(variance))
  # In logarithms: at small sigma every likelihood underflows float32.
  share = jax.nn.softmax(jnp.log(prior.weights) + score)  # [M, K]
  mean = jnp.einsum("mk,k...->m...", share, prior.means, precision=_HIGHEST)
  kept = share * prior.std**2 / variance
  return mean + jnp.einsum("mk,mk...->m...", kept, offset, precision=_HIGHEST)
