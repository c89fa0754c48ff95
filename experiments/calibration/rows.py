"""How true posterior samples are: the rows of the calibration study."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.calibration.problems import Gaussian, Mixture
from posterior_jax import metrics

BANDS = 8
LEVELS = (0.5, 0.9)
TRUTHS = 64  # exact draws that the samples' intervals should cover


# The numbers of a row by what is judged, None where a method failed.
NUMBERS = {
  "gaussian": (
    "mean_error",
    "mean_floor",
    "ratio",
    "ratio_error",
    "bands",
    "worst_band",
    "coverage_50",
    "coverage_90",
    "distance",
    "distance_floor",
  ),
  "mixture": ("distance", "distance_floor", "weight_error", "weight_floor"),
}


class Who(NamedTuple):
  """Who sampled: a line of a table.

  Attributes:
    method: a key of `samplers.METHODS`.
    setting: of the method.
    factor: of the spectrum that the method was given, 1 where it is right.
    budget: denoiser calls asked for; 0: as the setting does.
  """

  method: str
  setting: str
  factor: float
  budget: int

  def __str__(self) -> str:
    words = f"{self.method} {self.setting}"
    return words if self.factor == 1 else f"{words}, spectrum x {self.factor:g}"


def judge_gaussian(
  samples: jax.Array, problem: Gaussian, key: jax.Array, directions: int
) -> dict[str, Any]:
  """Numbers of samples [B, 1, H, W, 1] against a Gaussian posterior.

  Args:
    samples: B of them.
    problem: what they are of.
    key: of exact draws and directions.
    directions: of the sliced Wasserstein distance.

  Returns:
    mean_error: RMS error of the mean over RMS posterior standard deviation.
    mean_floor: its size for exact samples.
    ratio: sample variance over exact variance.
    ratio_error: its Monte Carlo standard error.
    bands: the ratio in radial bands, low to high, as text.
    worst_band: the band's ratio that is farthest from 1.
    coverage_50, coverage_90: share of exact draws in the samples' central
      interval, less that for exact samples, in points.
    distance: sliced 2-Wasserstein distance to exact draws.
    distance_floor: that between exact draws.
  """
  found = _gaussian_numbers(
    samples, problem._asdict() | {"task": None}, key, directions
  )
  ratio, covered = found["ratio"], found["coverage"]
  bands = np.asarray(found["bands"], float)
  return {
    "mean_error": float(found["mean"].value),
    "mean_floor": float(found["mean"].floor),
    "ratio": float(ratio[0]),
    "ratio_error": float(ratio[1]),
    "bands": " ".join(f"{band:.4f}" for band in bands),
    "worst_band": float(bands[np.argmax(np.abs(bands - 1))]),
    **{
      f"coverage_{100 * level:.0f}": 100 * float(value)
      for level, value in zip(LEVELS, covered)
    },
    "distance": float(found["distances"][0]),
    "distance_floor": float(found["distances"][1]),
  }


@functools.partial(jax.jit, static_argnums=3)
def _gaussian_numbers(
  samples: jax.Array, fields: dict[str, Any], key: jax.Array, directions: int
) -> dict[str, Any]:
  problem = Gaussian(**fields)  # the task's name is no array
  keys = jax.random.split(key, 4)
  count = len(samples)
  truths = problem.exact(keys[0], TRUTHS)
  covered = []
  for level in LEVELS:

    def one(truth: jax.Array, level: float = level) -> jax.Array:
      found = metrics.coverage(samples, truth, level=level)
      return found.value - found.expected

    covered.append(jnp.mean(jax.lax.map(one, truths)))
  first, second = (problem.exact(k, count) for k in keys[1:3])
  flat = [x.reshape(count, -1) for x in (samples, first, second)]
  distances = [
    metrics.sliced_wasserstein(x, flat[1], keys[3], directions=directions)
    for x in (flat[0], flat[2])
  ]
  ratio = metrics.variance_ratio(samples, problem.variance, bands=BANDS)
  return {
    "mean": metrics.normalised_mean_error(samples, problem.mean, problem.std),
    "ratio": (ratio.total, ratio.total_error),
    "bands": ratio.bands,
    "coverage": covered,
    "distances": distances,
  }


@functools.partial(jax.jit, static_argnums=3)
def _mixture_numbers(
  samples: jax.Array, problem: Mixture, key: jax.Array, directions: int
) -> tuple[jax.Array, ...]:
  keys = jax.random.split(key, 3)
  count = len(samples)
  first, second = (problem.posterior.sample(k, count) for k in keys[:2])

  def distance(x: jax.Array) -> jax.Array:
    return metrics.sliced_wasserstein(x, first, keys[2], directions=directions)

  def error(x: jax.Array) -> jax.Array:
    away = problem.modes(x) - problem.posterior.weights
    return 0.5 * jnp.sum(jnp.abs(away))

  return distance(samples), distance(second), error(samples), error(second)


def judge_mixture(
  samples: jax.Array, problem: Mixture, key: jax.Array, directions: int
) -> dict[str, float]:
  """Numbers of samples [B, 1, H, W, 1] against a mixture posterior.

  Args:
    samples: B of them.
    problem: what they are of.
    key: of exact draws and directions.
    directions: of the sliced Wasserstein distance.

  Returns:
    distance: sliced 2-Wasserstein distance to exact draws.
    distance_floor: that between exact draws.
    weight_error: total variation distance of the modes' shares.
    weight_floor: that of exact draws.
  """
  flat = samples.reshape(len(samples), -1)
  found = _mixture_numbers(flat, problem, key, directions)
  return {k: float(value) for k, value in zip(NUMBERS["mixture"], found)}
