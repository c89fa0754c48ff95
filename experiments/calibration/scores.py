"""How true posterior samples are, where the posterior is known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.calibration.problems import (
  Gaussian,
  GaussianPosterior,
  Mixture,
  mode_shares,
)
from posterior_jax import metrics, priors

BANDS = 8
LEVELS = {"coverage_50": 0.5, "coverage_90": 0.9}
TRUTHS = 64  # exact draws that the samples' intervals should cover
# The columns of each table's rows, None where a method failed.
NAMES = {
  "gaussian": (
    *("mean_error", "mean_floor", "ratio", "ratio_error", "bands"),
    *("worst_band", *LEVELS, "distance", "distance_floor"),
  ),
  "mixture": ("distance", "distance_floor", "weight_error", "weight_floor"),
}


def evaluate_gaussian(
  samples: jax.Array, problem: Gaussian, key: jax.Array, directions: int
) -> dict[str, Any]:
  """Samples against a Gaussian posterior, columns as in NAMES.

  The mean's RMS error is over the RMS posterior standard deviation, its floor
  that of exact samples; ratios are sample variance over exact variance, in
  radial bands low to high as text; coverages are the share of exact draws in
  the samples' central interval, less that for exact samples, in points;
  distances are sliced 2-Wasserstein, to exact draws and between such.
  """
  found = _gaussian(samples, problem.posterior, key, directions)
  bands = np.asarray(found.pop("bands"), float)
  numbers = {name: float(value) for name, value in found.items()} | {
    "bands": " ".join(f"{band:.4f}" for band in bands),
    "worst_band": float(bands[np.argmax(np.abs(bands - 1))]),
  }
  return {name: numbers[name] for name in NAMES["gaussian"]}


# Of the posterior alone: one program for all tasks, whatever they measure.
@functools.partial(jax.jit, static_argnums=3)
def _gaussian(
  samples: jax.Array,
  posterior: GaussianPosterior,
  key: jax.Array,
  directions: int,
) -> dict[str, jax.Array]:
  keys = jax.random.split(key, 4)
  count = len(samples)
  truths = posterior.sample(keys[0], TRUTHS)
  first, second = (posterior.sample(k, count) for k in keys[1:3])

  def covered(level: float) -> jax.Array:
    def one(truth: jax.Array) -> jax.Array:
      found = metrics.coverage(samples, truth, level=level)
      return found.value - found.expected

    return 100 * jnp.mean(jax.lax.map(one, truths))

  ratio = metrics.variance_ratio(samples, posterior.variance, bands=BANDS)
  mean = metrics.normalised_mean_error(samples, posterior.mean, posterior.std)
  return {
    "mean_error": mean.value,
    "mean_floor": jnp.asarray(mean.floor),
    "ratio": ratio.total,
    "ratio_error": ratio.total_error,
    "bands": ratio.bands,
    **_distances(samples, first, second, keys[3], directions),
    **{name: covered(level) for name, level in LEVELS.items()},
  }


def evaluate_mixture(
  samples: jax.Array, problem: Mixture, key: jax.Array, directions: int
) -> dict[str, float]:
  """Samples against a mixture posterior, columns as in NAMES.

  Sliced 2-Wasserstein distance to exact draws and total variation distance of
  the modes' shares, each with its floor, that of exact draws.
  """
  flat = samples.reshape(len(samples), -1)
  found = _mixture(flat, problem.prior, problem.posterior, key, directions)
  return {name: float(found[name]) for name in NAMES["mixture"]}


@functools.partial(jax.jit, static_argnums=4)
def _mixture(
  samples: jax.Array,
  prior: priors.GaussianMixture,
  posterior: priors.MixturePosterior,
  key: jax.Array,
  directions: int,
) -> dict[str, jax.Array]:
  keys = jax.random.split(key, 3)
  first, second = (posterior.sample(k, len(samples)) for k in keys[:2])

  def error(x: jax.Array) -> jax.Array:
    away = mode_shares(prior, x) - posterior.weights
    return 0.5 * jnp.sum(jnp.abs(away))

  return {
    **_distances(samples, first, second, keys[2], directions),
    "weight_error": error(samples),
    "weight_floor": error(second),
  }


def _distances(
  samples: jax.Array,
  exact: jax.Array,
  other: jax.Array,  # exact draws too
  key: jax.Array,
  directions: int,
) -> dict[str, jax.Array]:
  """Sliced 2-Wasserstein distances to exact draws, of samples and of others."""
  *both, truth = (x.reshape(len(x), -1) for x in (samples, other, exact))
  found = (
    metrics.sliced_wasserstein(x, truth, key, directions=directions)
    for x in both
  )
  return dict(zip(("distance", "distance_floor"), found))
