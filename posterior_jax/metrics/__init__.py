"""How good a restoration is, and how true a set of posterior samples."""

from posterior_jax.metrics.dists import DISTS as DISTS
from posterior_jax.metrics.dists import load_dists as load_dists
from posterior_jax.metrics.flip import flip as flip
from posterior_jax.metrics.flip import flip_map as flip_map
from posterior_jax.metrics.image import (
  measurement_residual as measurement_residual,
)
from posterior_jax.metrics.image import psnr as psnr
from posterior_jax.metrics.image import ssim as ssim
from posterior_jax.metrics.intervals import Coverage as Coverage
from posterior_jax.metrics.intervals import coverage as coverage
from posterior_jax.metrics.intervals import hpd_coverage as hpd_coverage
from posterior_jax.metrics.lpips import LPIPS as LPIPS
from posterior_jax.metrics.lpips import load_lpips as load_lpips
from posterior_jax.metrics.posterior import MeanError as MeanError
from posterior_jax.metrics.posterior import crps as crps
from posterior_jax.metrics.posterior import (
  normalised_mean_error as normalised_mean_error,
)
from posterior_jax.metrics.posterior import (
  sliced_wasserstein as sliced_wasserstein,
)
from posterior_jax.metrics.spectral_variance import (
  VarianceRatio as VarianceRatio,
)
from posterior_jax.metrics.spectral_variance import (
  coefficient_variance as coefficient_variance,
)
from posterior_jax.metrics.spectral_variance import (
  variance_ratio as variance_ratio,
)

__all__ = (
  "DISTS",
  "LPIPS",
  "Coverage",
  "MeanError",
  "VarianceRatio",
  "coefficient_variance",
  "coverage",
  "crps",
  "flip",
  "flip_map",
  "hpd_coverage",
  "load_dists",
  "load_lpips",
  "measurement_residual",
  "normalised_mean_error",
  "psnr",
  "sliced_wasserstein",
  "ssim",
  "variance_ratio",
)
