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

from posterior_jax.types import Denoiser

_HIGHEST = lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
  """x0 ~ sum_k weights[k] N(means[k], std[k]^2 I); made by `gaussian_mixture`.

  Attributes:
    weights: [K], > 0, sum 1.
    means: [K, H, W, C].
    std: [K], > 0, in pixel units.
  """

  weights: jax.Array
  means: jax.Array
  std: jax.Array

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
    covariances: [K, D, D].
  """

  weights: jax.Array
  means: jax.Array
  covariances: jax.Array

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
    root = jnp.linalg.cholesky(self.covariances)[which]  # [count, D, D]
    white = jax.random.normal(key_noise, root.shape[:2], root.dtype)
    return self.means[which] + jnp.einsum(
      "nij,nj->ni", root, white, precision=_HIGHEST
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
  """
  weights, means = jnp.asarray(weights), jnp.asarray(means)
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
    Gaussian posterior, by the gain G_k = s_k^2 A^T (s_k^2 A A^T + s^2 I)^-1.

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
  """
  means = prior.means.reshape(prior.means.shape[0], -1)  # [K, D]
  size = means.shape[1]
  if matrix.ndim != 2 or matrix.shape[1] != size:
    raise ValueError(f"matrix must have shape [m, {size}], got {matrix.shape}")
  if y.shape != matrix.shape[:1]:
    raise ValueError(f"y must have shape {matrix.shape[:1]}, got {y.shape}")
  if not noise_std > 0:
    raise ValueError(f"noise_std must be positive, got {noise_std}")
  eye_y = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
  eye_x = jnp.eye(size, dtype=matrix.dtype)
  gram = jnp.matmul(matrix, matrix.T, precision=_HIGHEST)

  def one(mean: jax.Array, std: jax.Array) -> tuple[jax.Array, ...]:
    root = jnp.linalg.cholesky(std**2 * gram + noise_std**2 * eye_y)
    misfit = y - jnp.matmul(matrix, mean, precision=_HIGHEST)
    solved = jax.scipy.linalg.cho_solve((root, True), misfit)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    evidence = -0.5 * (jnp.vdot(misfit, solved, precision=_HIGHEST) + log_det)
    gain = std**2 * jax.scipy.linalg.cho_solve((root, True), matrix).T
    shift = jnp.matmul(gain, misfit, precision=_HIGHEST)
    shrink = eye_x - jnp.matmul(gain, matrix, precision=_HIGHEST)
    return evidence, mean + shift, std**2 * shrink

  evidence, means, covariances = jax.vmap(one)(means, prior.std)
  weights = jax.nn.softmax(jnp.log(prior.weights) + evidence)
  return MixturePosterior(weights, means, covariances)


def _denoise(
  prior: GaussianMixture, x: jax.Array, sigma: jax.Array
) -> jax.Array:
  """sum_k r_k(x) (m_k + s_k^2 / (s_k^2 + sigma^2) (x - m_k)).

  r is the posterior of the component; x [M, H, W, C], sigma [M].
  """
  size = prior.means[0].size
  variance = prior.std**2 + sigma[:, None] ** 2  # [M, K]
  offset = x[:, None] - prior.means  # [M, K, H, W, C]
  distance = jnp.sum(offset**2, axis=(-3, -2, -1))
  score = -0.5 * (distance / variance + size * jnp.log(variance))
  share = jax.nn.softmax(jnp.log(prior.weights) + score)  # [M, K]
  mean = jnp.einsum("mk,k...->m...", share, prior.means, precision=_HIGHEST)
  kept = share * prior.std**2 / variance
  return mean + jnp.einsum("mk,mk...->m...", kept, offset, precision=_HIGHEST)
