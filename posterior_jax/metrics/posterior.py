"""How true a set of posterior samples is, against an exact posterior.

Samples are [B, ...]. Every metric comes with the value or the spread that exact
samples would have, so that a number can be told from its Monte Carlo noise.
Reached as `posterior_jax.metrics`.
"""

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


class Coverage(NamedTuple):
  """How often the truth lies in the samples' central interval.

  Attributes:
    value: fraction of the truth's entries inside, scalar.
    expected: the fraction for exact samples; differs from the level asked for
      because B samples have only B + 1 ranks.
  """

  value: jax.Array
  expected: float


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
  _check_samples(samples, mean, "mean")
  difference = jnp.mean(samples, axis=0) - mean
  ratio = jnp.mean(difference**2) / jnp.mean(std**2)
  return MeanError(jnp.sqrt(ratio), float(samples.shape[0] ** -0.5))


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
  # Normal draws scaled to length 1 are uniform on the sphere.
  u = jax.random.normal(key, (x.shape[1], directions), x.dtype)  # [d, K]
  u = u / jnp.linalg.norm(u, axis=0)

  def projected(points: jax.Array) -> jax.Array:
    along = jnp.matmul(points, u, precision=lax.Precision.HIGHEST)
    return jnp.sort(along, axis=0)  # [n, directions]

  return jnp.sqrt(jnp.mean((projected(x) - projected(y)) ** 2))


def coverage(
  samples: jax.Array, truth: jax.Array, *, level: float = 0.9
) -> Coverage:
  """Fraction of entries whose truth lies in the samples' central interval.

  The interval runs between two order statistics, so that a truth drawn from
  the posterior the samples come from falls inside with a known probability,
  whatever that posterior is.

  Args:
    samples: [B, ...].
    truth: [...].
    level: probability of the interval, in (0, 1).

  Returns:
    The fraction inside, and the one expected of exact samples.

  Raises:
    ValueError: if shapes differ, or B samples are too few for the level.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> keys = jax.random.split(jax.random.key(0))
    >>> samples = jax.random.normal(keys[0], (19, 1000))
    >>> truth = jax.random.normal(keys[1], (1000,))
    >>> found = pj.metrics.coverage(samples, truth, level=0.9)
    >>> found.expected
    0.9
    >>> bool(abs(found.value - found.expected) < 0.05)
    True
  """
  _check_samples(samples, truth, "truth")
  count = samples.shape[0]
  if not 0 < level < 1:
    raise ValueError(f"level must lie in (0, 1), got {level}")
  tail = int(np.ceil((1 - level) / 2 * (count + 1) - 0.5 - 1e-9))  # nearest
  if tail < 1:
    raise ValueError(
      f"level {level} needs at least "
      f"{int(np.ceil(1 / (1 - level) - 1e-9))} samples, got {count}"
    )
  # A truth from the samples' own law has each of the B + 1 ranks equally often.
  rank = jnp.sum(samples < truth, axis=0)
  inside = (rank >= tail) & (rank <= count - tail)
  expected = (count + 1 - 2 * tail) / (count + 1)
  return Coverage(jnp.mean(inside.astype(samples.dtype)), expected)


def _check_samples(samples: jax.Array, one: jax.Array, name: str) -> None:
  if samples.ndim < 1 or samples.shape[1:] != one.shape:
    raise ValueError(
      f"{name} must have the shape of one sample {samples.shape[1:]}, got "
      f"{one.shape}"
    )
