"""Inverse problems whose posterior is known exactly.

A stationary Gaussian prior on small images, seen through the operators of the
restoration benchmark; and the mixture of 25 modes of MCGDiff (Cardoso et al.
2024), scaled by 1/16 so that its modes lie in [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import Observation, Operator, operators, priors
from posterior_jax.baselines import Task

NOISE_STD = 0.05
SCALE = 1 / 16
MODES = 25
Shape = tuple[int, int, int]

# What is measured, and whose published settings suit it.
TASKS: dict[str, tuple[Task, Callable[[Shape], Operator]]] = {
  "inpainting": (
    "random_inpainting",
    lambda shape: operators.random_inpainting(shape, fraction=0.5),
  ),
  "circular blur": (
    "gaussian_blur",
    lambda shape: operators.gaussian_blur(
      shape, size=9, std=1.5, boundary="circular"
    ),
  ),
  "mirrored blur": (
    "gaussian_blur",
    lambda shape: operators.gaussian_blur(shape, size=9, std=1.5),
  ),
  "super-resolution": (
    "super_resolution",
    lambda shape: operators.super_resolution(shape, factor=4),
  ),
}


class GaussianPosterior(NamedTuple):
  """What is known exactly of p(x0 | y) under a Gaussian prior; D = H W."""

  mean: jax.Array  # [1, H, W, 1]
  std: jax.Array  # the same shape
  root: jax.Array  # [D, D], R of the covariance R R^T
  variance: jax.Array  # [H, W], of every coefficient of the orthonormal FFT

  def sample(self, key: jax.Array, count: int) -> jax.Array:
    """Exact draws, [count, 1, H, W, 1]."""
    white = jax.random.normal(key, (count, len(self.root)))
    drawn = jnp.matmul(white, self.root.T, precision="highest")
    return self.mean + drawn.reshape(count, *self.mean.shape)


class Gaussian(NamedTuple):
  """An observation of one image, and its exact posterior."""

  task: Task  # whose published settings suit it
  prior: priors.GaussianPrior  # zero-mean, known exactly to the sampler
  observation: Observation  # y [1, h, w, 1]
  posterior: GaussianPosterior


def gaussian(
  name: str,  # a key of TASKS
  size: int,  # H and W, divisible by 4; D = size^2 numbers squared are held
  seed: int,  # of the image and the noise
) -> Gaussian:
  """A Gaussian problem, its posterior by dense algebra in float64."""
  shape = (size, size, 1)
  task, build = TASKS[name]
  operator = build(shape)
  prior = priors.gaussian_prior(priors.power_law_spectrum(size, size))
  keys = jax.random.split(jax.random.key(seed))
  clean = operator.forward(prior.sample(keys[0], (1,), channels=1))
  y = clean + NOISE_STD * jax.random.normal(keys[1], clean.shape)
  basis = np.eye(size**2).reshape(-1, size, size)
  power = np.asarray(prior.spectrum, np.float64)
  images = operator.forward(jnp.asarray(basis, jnp.float32)[..., None])
  matrix = np.asarray(images, np.float64).reshape(size**2, -1).T  # [m, D]
  inverse = np.fft.ifft2(np.fft.fft2(basis) / power).real
  precision = inverse.reshape(size**2, -1).T + matrix.T @ matrix / NOISE_STD**2
  covariance = np.linalg.inv(precision)
  observed = np.asarray(operator.observed * y, np.float64).ravel()
  mean = covariance @ (matrix.T @ observed) / NOISE_STD**2
  root = np.linalg.cholesky((covariance + covariance.T) / 2)
  f = np.fft.fft2(root.T.reshape(-1, size, size), norm="ortho")
  std = np.sqrt(np.diag(covariance))
  known = (mean.reshape(1, *shape), std.reshape(1, *shape), root)
  arrays = (*known, (np.abs(f) ** 2).sum(0))
  posterior = GaussianPosterior(*(jnp.asarray(a, jnp.float32) for a in arrays))
  return Gaussian(task, prior, Observation(y, operator, NOISE_STD), posterior)


class Mixture(NamedTuple):
  """An observation of one vector, as an image, and its exact posterior."""

  prior: priors.GaussianMixture  # 25 isotropic modes
  observation: Observation  # y [1, m, 1, 1]
  posterior: priors.MixturePosterior  # a mixture again


def mode_shares(prior: priors.GaussianMixture, samples: jax.Array) -> jax.Array:
  """Share of samples [B, D] nearest to each of the prior's modes, [MODES]."""
  means = prior.means.reshape(MODES, -1)
  square = jnp.sum(means**2, axis=1)
  product = jnp.matmul(samples, means.T, precision="highest")
  nearest = jnp.argmin(square - 2 * product, axis=1)
  return jnp.mean(jax.nn.one_hot(nearest, MODES), axis=0)


# Both sides even, so that a wavelet transform exists.
MIXTURE_SHAPES: dict[int, Shape] = {
  8: (2, 4, 1),
  80: (8, 10, 1),
  800: (20, 40, 1),
}


def mixture(
  size: int,  # D, a key of MIXTURE_SHAPES
  measured: int,  # m, at most D
  number: int,  # which of the problems
  seed: int,  # of them all
) -> Mixture:
  """A random mixture problem of MCGDiff.

  Means (8 i, 8 j) for i, j = -2 .. 2, repeated over dimensions, unit variance,
  squared normal weights, a matrix of random singular vectors with uniform
  singular values, and noise uniform below the largest of those; all lengths
  times 1/16.
  """
  rng = np.random.default_rng((seed, size, measured, number))
  grid = 8 * np.stack(np.meshgrid(*2 * [np.arange(-2, 3)]), -1).reshape(-1, 2)
  shape = MIXTURE_SHAPES[size]
  means = np.tile(grid, (1, size // 2)) * SCALE
  prior = priors.gaussian_mixture(
    jnp.asarray(rng.standard_normal(MODES) ** 2, jnp.float32),
    jnp.asarray(means.reshape(MODES, *shape), jnp.float32),
    SCALE,
  )
  left = np.linalg.qr(rng.standard_normal((measured, measured)))[0]
  right = np.linalg.qr(rng.standard_normal((size, measured)))[0]
  values = rng.uniform(size=measured)
  operator = operators.dense(shape, left * values @ right.T)
  # Not below a tenth: an almost exact measurement asks for float64.
  noise_std = float(rng.uniform(0.1, 1) * values.max() * SCALE)
  keys = jax.random.split(jax.random.key(rng.integers(2**31)))
  clean = operator.forward(prior.sample(keys[0], (1,)))
  y = clean + noise_std * jax.random.normal(keys[1], clean.shape)
  posterior = priors.mixture_posterior(
    prior, operator.matrix, y.ravel(), noise_std
  )
  return Mixture(prior, Observation(y, operator, noise_std), posterior)
