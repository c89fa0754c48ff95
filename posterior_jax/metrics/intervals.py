"""Whether the truth lies where posterior samples say that it should.

Coverage by ranks: what B exact samples cover is known exactly for every B and
every posterior. Reached as `posterior_jax.metrics`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.metrics.posterior import check_samples


class Coverage(NamedTuple):
  """How often the truth lies in a region that the samples span.

  Attributes:
    value: fraction of the truth's entries inside, scalar.
    expected: the fraction for exact samples; differs from the level asked for
      because B samples have only B + 1 ranks.
  """

  value: jax.Array
  expected: float


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
    The fraction inside, NaN if a sample or a truth is, and the one expected of
    exact samples.

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
  check_samples(samples, truth, "truth")
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
  expected = (count + 1 - 2 * tail) / (count + 1)
  return Coverage(_between(samples, truth, tail), expected)


def hpd_coverage(
  log_densities: jax.Array, truth: jax.Array, *, level: float = 0.9
) -> Coverage:
  """Fraction of truths in the samples' region of highest posterior density.

  A truth is inside if fewer than k of the B samples have a higher log-density,
  k the integer nearest to level (B + 1). One answer per image, so that
  correlations count; `coverage` takes every pixel for itself.

  Args:
    log_densities: log p(x | y) of every sample, up to one constant for each
      observation, [B, ...].
    truth: log p(x | y) of what was measured, up to the same, [...].
    level: probability of the region, in (0, 1).

  Returns:
    The fraction inside, NaN if a log-density is, and the one expected of exact
    samples, k / (B + 1).

  Raises:
    ValueError: if shapes differ, or B samples are too few for the level.

  Example:
    >>> import jax
    >>> import posterior_jax as pj
    >>> log_density = lambda x: -(x**2).sum(-1) / 2
    >>> keys = jax.random.split(jax.random.key(0))
    >>> samples = jax.random.normal(keys[0], (19, 1000, 5))
    >>> truth = jax.random.normal(keys[1], (1000, 5))
    >>> found = pj.metrics.hpd_coverage(
    ...   log_density(samples), log_density(truth)
    ... )
    >>> found.expected
    0.9
    >>> bool(abs(found.value - found.expected) < 0.05)
    True
  """
  check_samples(log_densities, truth, "truth")
  count = log_densities.shape[0]
  if not 0 < level < 1:
    raise ValueError(f"level must lie in (0, 1), got {level}")
  inner = int(np.floor(level * (count + 1) + 0.5 + 1e-9))  # nearest
  if not 1 <= inner <= count:
    # From level (B + 1) < B + 1/2, or at least 1/2.
    most = max((level - 0.5) / (1 - level), 0.5 / level - 2)
    least = int(np.floor(most + 1e-9)) + 1
    raise ValueError(
      f"level {level} needs at least {least} samples, got {count}"
    )
  return Coverage(_above(log_densities, truth, inner), inner / (count + 1))


@functools.partial(jax.jit, static_argnums=2)
def _between(samples: jax.Array, truth: jax.Array, tail: int) -> jax.Array:
  """How often at least `tail` samples lie to either side of the truth."""
  rank = jnp.sum(samples < truth, axis=0)
  inside = (rank >= tail) & (rank <= samples.shape[0] - tail)
  return _fraction(inside, samples, truth)


@functools.partial(jax.jit, static_argnums=2)
def _above(samples: jax.Array, truth: jax.Array, inner: int) -> jax.Array:
  """How often fewer than `inner` samples lie above the truth."""
  rank = jnp.sum(samples > truth, axis=0)
  return _fraction(rank < inner, samples, truth)


def _fraction(
  inside: jax.Array, samples: jax.Array, truth: jax.Array
) -> jax.Array:
  """Mean of what is inside, NaN where a rank means nothing."""
  # NaN is above nothing: as a log-density it would count as the densest.
  bad = jnp.isnan(truth) | jnp.isnan(samples).any(axis=0)
  return jnp.mean(jnp.where(bad, jnp.nan, inside.astype(samples.dtype)))
