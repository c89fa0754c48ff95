"""Image priors: some known exactly in closed form, some learned."""

from posterior_jax.priors.checkpoints.adm import ADMConfig as ADMConfig
from posterior_jax.priors.checkpoints.adm import load_adm as load_adm
from posterior_jax.priors.checkpoints.diffusers_unet import (
  load_diffusers as load_diffusers,
)
from posterior_jax.priors.gaussian import GaussianPrior as GaussianPrior
from posterior_jax.priors.gaussian import estimate_spectrum as estimate_spectrum
from posterior_jax.priors.gaussian import gaussian_prior as gaussian_prior
from posterior_jax.priors.gaussian import posterior_mean as posterior_mean
from posterior_jax.priors.gaussian import (
  power_law_spectrum as power_law_spectrum,
)
from posterior_jax.priors.learned import UNetPrior as UNetPrior
from posterior_jax.priors.learned import initial_params as initial_params
from posterior_jax.priors.learned import unet_prior as unet_prior
from posterior_jax.priors.mixture import GaussianMixture as GaussianMixture
from posterior_jax.priors.mixture import MixturePosterior as MixturePosterior
from posterior_jax.priors.mixture import gaussian_mixture as gaussian_mixture
from posterior_jax.priors.mixture import mixture_posterior as mixture_posterior
from posterior_jax.priors.nets.ddpm_unet import DDPMConfig as DDPMConfig
from posterior_jax.priors.nets.unet import UNetConfig as UNetConfig
from posterior_jax.priors.parametrisation import EDM as EDM
from posterior_jax.priors.parametrisation import VE as VE
from posterior_jax.priors.parametrisation import VP as VP
from posterior_jax.priors.parametrisation import Flow as Flow
from posterior_jax.priors.photo import load_prior as load_prior
from posterior_jax.priors.photo import photo_prior as photo_prior
from posterior_jax.priors.photo import save_prior as save_prior

__all__ = (
  "EDM",
  "VE",
  "VP",
  "ADMConfig",
  "DDPMConfig",
  "Flow",
  "GaussianMixture",
  "GaussianPrior",
  "MixturePosterior",
  "UNetConfig",
  "UNetPrior",
  "estimate_spectrum",
  "gaussian_mixture",
  "gaussian_prior",
  "initial_params",
  "load_adm",
  "load_diffusers",
  "load_prior",
  "mixture_posterior",
  "photo_prior",
  "posterior_mean",
  "power_law_spectrum",
  "save_prior",
  "unet_prior",
)
