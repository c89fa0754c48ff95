"""Denoisers of known noise, one signature: image and sigma to image.

Pixels lie in [-1, 1] and so does sigma; images are [H, W, 3] float64.
"""

import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import degradations
from posterior_jax import priors

Method = Callable[[np.ndarray, float], np.ndarray]

PRIOR = "photo prior"
BM3D = "BM3D"
WIENER = "Wiener, training spectrum"
NL_MEANS = "non-local means"
NOISY = "noisy"


def methods(prior: priors.UNetPrior) -> dict[str, Method]:
  """Every method by name; BM3D only where the package `bm3d` is installed."""
  found: dict[str, Method] = {
    NOISY: lambda y, _: y,
    NL_MEANS: nl_means,
    WIENER: wiener,
  }
  if bm3d_installed():
    found[BM3D] = bm3d
  return found | {PRIOR: functools.partial(learned, prior)}


def bm3d_installed() -> bool:
  """Whether the package `bm3d` is there: it is free for research, not open."""
  return importlib.util.find_spec("bm3d") is not None


def bm3d(y: np.ndarray, sigma: float) -> np.ndarray:
  """Colour BM3D (Dabov et al. 2007), the authors' code and settings."""
  import bm3d as package

  return 2 * package.bm3d_rgb(y / 2 + 0.5, sigma / 2) - 1


def nl_means(y: np.ndarray, sigma: float) -> np.ndarray:
  """Non-local means (Buades et al. 2005) as scikit-image's example sets it."""
  from skimage import restoration

  return restoration.denoise_nl_means(
    y,
    h=0.6 * sigma,
    sigma=sigma,
    fast_mode=False,
    patch_size=5,
    patch_distance=6,
    channel_axis=-1,
  )


def wiener(y: np.ndarray, sigma: float) -> np.ndarray:
  """The exact posterior mean under the training photographs' spectrum."""
  return learned(_gaussian(*y.shape[:2]), y, sigma)


_gaussian = functools.cache(degradations.build_prior)


def learned(
  prior: priors.UNetPrior | priors.GaussianPrior, y: np.ndarray, sigma: float
) -> np.ndarray:
  """One call of a prior's denoiser."""
  x = _denoise(prior, jnp.asarray(y[None], jnp.float32), jnp.float32([sigma]))
  return np.asarray(x[0], np.float64)


@jax.jit
def _denoise(prior, x, sigma):
  return prior.denoise(x, sigma)
