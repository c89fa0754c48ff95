"""How good restored photographs are: the same numbers in every study."""

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import Observation, metrics

# Columns of a table; those that end in _mean are of the mean of the samples.
NAMES = (
  *("psnr", "ssim", "residual", "psnr_mean", "ssim_mean"),
  *("flip", "lpips", "flip_mean", "lpips_mean", "spread"),
)
COLOURS = 3  # channels that FLIP is of


def evaluate(
  samples: jax.Array,
  observation: Observation,
  truth: jax.Array | None,
  lpips: metrics.LPIPS | None = None,
) -> list[dict[str, float | None]]:
  """Scores of samples, photograph by photograph.

  Args:
    samples: [m, N, H, W, C], pixels in [-1, 1].
    observation: y [N, h, w, C], what they restore.
    truth: [N, H, W, C] less the operator's margin, None where nobody knows it.
    lpips: that distance, None without its weights.

  Returns:
    N dicts of NAMES, None for what cannot be said:
      psnr: of one sample, dB, averaged over the m.
      ssim, flip, lpips: likewise; small FLIP, which only images in colour
        have, and small LPIPS are good.
      residual: |y - A x|^2 / (m noise_std^2) likewise; near 1 for the truth.
      psnr_mean, ssim_mean, flip_mean, lpips_mean: of the mean of the samples;
        m > 1.
      spread: standard deviation of a pixel over the samples, root mean square;
        m > 1.
  """
  found = _evaluate(samples, observation, truth, lpips)
  columns = {name: np.asarray(values, float) for name, values in found.items()}
  blank: dict[str, float | None] = dict.fromkeys(NAMES)
  return [
    blank | {name: float(values[i]) for name, values in columns.items()}
    for i in range(samples.shape[1])
  ]


@jax.jit
def _evaluate(
  samples: jax.Array,
  observation: Observation,
  truth: jax.Array | None,
  lpips: metrics.LPIPS | None,
) -> dict[str, jax.Array]:
  """[N] each, of what can be said."""
  shown = observation.operator.interior  # a truth is no larger than its picture
  coloured = samples.shape[-1] == COLOURS
  distances = {
    "psnr": metrics.psnr,
    "ssim": metrics.ssim,
    "flip": metrics.flip if coloured else None,
    "lpips": lpips,
  }
  mean = jnp.mean(samples, axis=0)  # [N, H, W, C]
  residual = metrics.measurement_residual(samples, observation)  # [m, N]
  found = {"residual": jnp.mean(residual, axis=0)}
  for name, distance in distances.items():
    if truth is not None and distance is not None:
      found[name] = jnp.mean(distance(shown(samples), truth), axis=0)
      if len(samples) > 1:
        found[f"{name}_mean"] = distance(shown(mean), truth)
  if len(samples) > 1:
    variance = jnp.var(samples, axis=0, ddof=1)  # [N, H, W, C]
    found["spread"] = jnp.sqrt(jnp.mean(variance, axis=(-3, -2, -1)))
  return found
