"""How far samples are from the exact posteriors of signals."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.harness import paired
from experiments.levy.problems import Problem
from posterior_jax import metrics

LEVEL = 0.9
_LOT = 1e-12  # above rounding, below anything measured
NAMES = ("gap", "gap_low", "gap_high", "hpd", "central", "crps", "spread")


def evaluate(samples: np.ndarray, problem: Problem) -> dict[str, Any]:
  """Numbers of samples [B, N, d], over all signals; columns as in NAMES.

  gap: mean squared error of the samples' mean over that of the exact mean, dB,
    with its 95 % interval by signals; 10 log10(1 + 1/B) for exact samples.
  hpd, central: share of the true signals in the region of highest density, of
    their points in central intervals, less what exact samples have, in points;
    hpd is None where the law has an atom.
  crps: of the points, over that of as many exact samples.
  spread: standard deviation over that of exact samples, root mean square.
  """
  exact = problem.exact.samples[: len(samples)]
  error, least = (
    ((mean - problem.truth) ** 2).mean(axis=1)
    for mean in (samples.mean(axis=0), problem.exact.mean)
  )
  more = paired.interval((error - least) / least.mean())
  # An interval may reach below the least error there is: by chance alone.
  gaps = [10 * float(np.log10(max(1 + x, 1e-3))) for x in more]
  scores = [
    float(metrics.crps(jnp.asarray(x), jnp.asarray(problem.truth)).mean())
    for x in (samples, exact)
  ]
  variances = [x.var(axis=0, ddof=1).mean() for x in (samples, exact)]
  numbers = (
    *gaps,
    _points(problem.log_density(samples), problem.log_density(problem.truth)),
    _points(samples, problem.truth),
    scores[0] / scores[1],
    float(np.sqrt(variances[0] / variances[1])),
  )
  return dict(zip(NAMES, numbers))


def _points(samples: np.ndarray, truth: np.ndarray) -> float | None:
  """Coverage less that of exact samples, in points: by density if [B, N]."""
  if np.isnan(truth).any():
    return None
  # About the truth, before they are float32; and points that are 0 before the
  # first jump, in the truth and in samples, have ranks by lot.
  rng = np.random.default_rng(0)
  lots = _LOT * (
    rng.uniform(size=samples.shape) - rng.uniform(size=truth.shape)
  )
  away = jnp.asarray(samples - truth + lots)
  cover = metrics.hpd_coverage if truth.ndim == 1 else metrics.coverage
  found = cover(away, jnp.zeros(truth.shape), level=LEVEL)
  return 100 * (float(found.value) - found.expected)
