"""Image priors whose denoiser, draws and posterior are known exactly."""

from posterior_jax.priors.gaussian import GaussianPrior as GaussianPrior
from posterior_jax.priors.gaussian import estimate_spectrum as estimate_spectrum
from posterior_jax.priors.gaussian import gaussian_prior as gaussian_prior
from posterior_jax.priors.gaussian import posterior_mean as posterior_mean
from posterior_jax.priors.gaussian import (
  power_law_spectrum as power_law_spectrum,
)
from posterior_jax.priors.mixture import GaussianMixture as GaussianMixture
from posterior_jax.priors.mixture import MixturePosterior as MixturePosterior
from posterior_jax.priors.mixture import gaussian_mixture as gaussian_mixture
from posterior_jax.priors.mixture import mixture_posterior as mixture_posterior

__all__ = (
  "GaussianMixture",
  "GaussianPrior",
  "MixturePosterior",
  "estimate_spectrum",
  "gaussian_mixture",
  "gaussian_prior",
  "mixture_posterior",
  "posterior_mean",
  "power_law_spectrum",
)
