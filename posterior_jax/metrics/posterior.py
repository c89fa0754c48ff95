"""How true posterior samples are: against an exact posterior, or truths alone.

Samples are [B, ...]; `crps` is the one that needs no posterior. Reached as
`posterior_jax.metrics`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class MeanError(NamedTuple):
  """Error of a sample mean in posterior standard deviations.

  Attributes:
    value: RMS(sample mean - exact mean) / RMS(posterior std), scalar.
    floor: its root mean square for B exact independent samples, 1 / sqrt(B).
  """

  value: jax.Array
  floor: float


def normalised_mean_error(
  samples: jax.Array, mean: jax.Array, std: jax.Array
) -> MeanError:
  """RMS(mean of samples - mean) / RMS(std) over every entry.

  Args:
    samples: [B, ...].
    mean: exact posterior mean, [...].
    std: exact posterior standard deviation, broadcastable to it.

  Returns:
    The ratio, and its size for exact samples.

  Raises:
    ValueError: if the mean is not of a sample's shape.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> samples = jax.random.normal(jax.random.key(0), (100, 4, 4, 1))
    >>> error = pj.metrics.normalised_mean_error(
    ...   samples, jnp.zeros((4, 4, 1)), jnp.ones(())
    ... )
    >>> error.floor
    0.1
    >>> bool(abs(error.value / error.floor - 1) < 0.5)
    True
  """
  check_samples(samples, mean, "mean")
  return MeanError(
    _mean_error(samples, mean, std), float(samples.shape[0] ** -0.5)
  )


@jax.jit
def _mean_error(
  samples: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
  difference = jnp.mean(samples, axis=0) - mean
  return jnp.sqrt(jnp.mean(difference**2) / jnp.mean(std**2))


def sliced_wasserstein(
  x: jax.Array, y: jax.Array, key: jax.Array, *, directions: int = 256
) -> jax.Array:
  """Sliced 2-Wasserstein distance of two point sets, in their unit.

    sqrt(mean over random unit vectors u of W_2(u.x, u.y)^2)

  Two finite sets of one law are not at distance 0, so a value means nothing
  alone: compare it with its floor, the same call on two sets of exact samples
  of the same size (the spread of several such pairs is its noise).

  Args:
    x: [n, d].
    y: [n, d].
    key: draws the directions; the same key compares along the same ones.
    directions: how many.

  Returns:
    Scalar.

  Raises:
    ValueError: if the sets are not of the same shape [n, d].

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> key = jax.random.key(1)
    >>> shifted = pj.metrics.sliced_wasserstein(x, x + 1, key)
    >>> bool(0.9 < shifted < 1.1)  # sqrt(3) long, seen from directions in 3-D
    True
  """
  if directions < 1:
    raise ValueError(f"directions must be at least 1, got {directions}")
  if x.ndim != 2 or x.shape != y.shape:
    raise ValueError(
      f"x and y must both have shape [n, d], got {x.shape} and {y.shape}"
    )
  return _sliced(x, y, key, directions)


@functools.partial(jax.jit, static_argnums=3)
def _sliced(
  x: jax.Array, y: jax.Array, key: jax.Array, directions: int
) -> jax.Array:
  # Normal draws scaled to length 1 are uniform on the sphere.
  u = jax.random.normal(key, (x.shape[1], directions), x.dtype)  # [d, K]
  u = u / jnp.linalg.norm(u, axis=0)

  def projected(points: jax.Array) -> jax.Array:
    along = jnp.matmul(points, u, precision=lax.Precision.HIGHEST)
    return jnp.sort(along, axis=0)  # [n, directions]

  return jnp.sqrt(jnp.mean((projected(x) - projected(y)) ** 2))


def crps(samples: jax.Array, truth: jax.Array) -> jax.Array:
  """Continuous ranked probability score of every entry, in its unit.

    mean |X_i - truth| - sum_{i, j} |X_i - X_j| / (2 B (B - 1))

  The second sum is over B (B - 1) pairs, so that the score's expectation is
  that of the samples' own law whatever B is (the fair score, Ferro 2014): on
  average least for samples of the law that the truth is from, and negative at
  times.

  Args:
    samples: [B, ...], B at least 2.
    truth: [...].

  Returns:
    [...], small is good; of a point mass the absolute error.

  Raises:
    TypeError: if samples are not floating point.
    ValueError: if shapes differ, or there are fewer than 2 samples.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> samples = jax.random.normal(jax.random.key(0), (1000, 100))
    >>> score = pj.metrics.crps(samples, jnp.zeros(100)).mean()
    >>> bool(abs(score - 0.234) < 0.01)  # (2^(1/2) - 1) / pi^(1/2)
    True
  """
  check_samples(samples, truth, "truth")
  if not jnp.issubdtype(samples.dtype, jnp.floating):
    raise TypeError(f"samples must be floating point, got {samples.dtype}")
  count = samples.shape[0]
  if count < 2:
    raise ValueError(f"samples must number at least 2, got {count}")
  # Not in the program, whose arguments are of 32 bits: NumPy's may have 64.
  return _fair_score(samples - truth)


@jax.jit
def _fair_score(away: jax.Array) -> jax.Array:
  count = away.shape[0]
  # About the truth: far from 0 the pairs' differences would cancel.
  away = jnp.sort(away, axis=0)
  weight = (2 * np.arange(1, count + 1) - count - 1) / (count * (count - 1))
  pairs = jnp.tensordot(
    jnp.asarray(weight, away.dtype), away, 1, precision=lax.Precision.HIGHEST
  )
  return jnp.mean(jnp.abs(away), axis=0) - pairs


def check_samples(samples: jax.Array, one: jax.Array, name: str) -> None:
  """Raises ValueError naming what is not of one sample's shape."""
  if samples.ndim < 1 or samples.shape[1:] != one.shape:
    raise ValueError(
      f"{name} must have the shape of one sample {samples.shape[1:]}, got "
      f"{one.shape}"
    )
