"""Draws from a trained prior, and their spectrum beside photographs'."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from posterior_jax.denoising import predictor
from posterior_jax.priors import UNetPrior

SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.01, 7.0


class Spectrum(NamedTuple):
  """Mean power of square images, radius by radius."""

  frequency: np.ndarray  # [K] cycles per pixel, ring by ring
  power: np.ndarray  # [K] per pixel, mean over images and channels
  error: np.ndarray  # [K] its standard error over the images, NaN of one image


@functools.partial(jax.jit, static_argnames=("count", "size", "steps"))
def sample(
  prior: UNetPrior, key: jax.Array, *, count: int, size: int, steps: int
) -> jax.Array:
  """Unconditional draws by the probability-flow ODE with Heun's method.

  Args:
    prior: the denoiser.
    key: of the draw.
    count: N.
    size: side.
    steps: of the ODE, two denoiser calls each.

  Returns:
    [N, size, size, C], not clipped.
  """
  shape = (count, size, size, prior.config.channels)
  x = predictor.predict(
    prior.denoise,
    SIGMA_MAX * jax.random.normal(key, shape),
    jnp.float32(SIGMA_MAX),
    kind="heun",
    steps=steps,
    sigma_end=SIGMA_MIN,
    rho=RHO,
  )
  return prior.denoise(x, jnp.full(count, SIGMA_MIN))


def radial_spectrum(images: np.ndarray) -> Spectrum:
  """Windowed power spectrum on rings one bin wide.

  Args:
    images: [N, S, S, C] in [-1, 1].

  Returns:
    Rings from 1 / S to 1/2 cycle per pixel.

  Raises:
    ValueError: if there is no image.
  """
  if not len(images):
    raise ValueError("images must hold at least one, got none")
  size = images.shape[1]
  # Some at a time: in float64 a transform is 4 times as large as its images.
  parts = np.array_split(images, -(-len(images) // 256))
  power = np.concatenate([*map(_ring_power, parts)])  # [N, K]
  deviation = power.std(0, ddof=1) if len(power) > 1 else np.nan
  return Spectrum(
    np.arange(1, size // 2 + 1) / size,
    power.mean(0),
    np.broadcast_to(deviation / len(power) ** 0.5, power.shape[1:]),
  )


def _ring_power(images: np.ndarray) -> np.ndarray:
  """Of every image, mean over channels: [N, S, S, C] -> [N, K]."""
  x = np.asarray(images, np.float64)
  size = x.shape[1]
  # Centred under the window: brightness must not leak into the first rings.
  window = np.hanning(size + 2)[1:-1]
  window = np.outer(window, window)[..., None]
  centred = x - (x * window).sum((1, 2), keepdims=True) / window.sum()
  f = np.fft.fft2(centred * window, axes=(1, 2))
  power = (np.abs(f) ** 2).mean(3) / (window**2).sum()  # [N, S, S]
  side = np.fft.fftfreq(size)
  ring = np.rint(np.hypot(*np.meshgrid(side, side)) * size).astype(int)
  inside = ring == np.arange(1, size // 2 + 1)[:, None, None]  # [K, S, S]
  total = np.tensordot(power, inside, ((1, 2), (1, 2)))
  return total / inside.sum((1, 2))


def grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images [N, S, S, 3] in [-1, 1] side by side, [h, w, 3] in [0, 1]."""
  x = np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
  rows = [x[i : i + columns] for i in range(0, len(x), columns)]
  whole = [row for row in rows if len(row) == len(rows[0])]
  return np.concatenate([np.concatenate(list(row), 1) for row in whole])


def pictures(images: np.ndarray, columns: int) -> Any:
  """A matplotlib figure of `grid`, pixel for pixel."""
  import matplotlib.pyplot as plt

  shown = grid(images, columns)
  figure = plt.figure(figsize=(shown.shape[1] / 120, shown.shape[0] / 120))
  axis = figure.add_axes((0, 0, 1, 1))
  axis.imshow(shown, interpolation="nearest")
  axis.set_axis_off()
  return figure


def compared(
  size: int, samples: jax.Array, photographs: jax.Array
) -> pd.DataFrame:
  """Both spectra of images [N, S, S, C] and their ratio in dB, a ring a row.

  The error is the ratio's standard error, both sets taken as independent draws.
  """
  found = radial_spectrum(np.asarray(samples))
  real = radial_spectrum(np.asarray(photographs))
  relative = np.hypot(found.error / found.power, real.error / real.power)
  return pd.DataFrame(
    {
      "size": size,
      "frequency": found.frequency,
      "samples": found.power,
      "photographs": real.power,
      "decibels": 10 * np.log10(found.power / real.power),
      "error": 10 / np.log(10) * relative,
    }
  )


def spectrum_figure(spectrum: pd.DataFrame) -> Any:
  """Power of samples and photographs, and their ratio, by size: a figure.

  Args:
    spectrum: rows of `compared`, of one or more sizes.
  """
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
  for size, rows in spectrum.groupby("size", sort=False):
    f = rows["frequency"]
    axes[0].loglog(f, rows["photographs"], "--", label=f"photos, {size}")
    axes[0].loglog(f, rows["samples"], label=f"samples, {size}")
    axes[1].semilogx(f, rows["decibels"], label=f"{size} pixels")
  axes[0].set(xlabel="cycles per pixel", ylabel="power")
  axes[1].axhspan(-2, 2, alpha=0.15)
  axes[1].set(xlabel="cycles per pixel", ylabel="samples over photographs [dB]")
  for axis in axes:
    axis.legend(fontsize=8)
  return figure
