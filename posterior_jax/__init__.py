"""Diffusion posterior sampling by noise-frequency continuation.

Pixels lie in [-1, 1], images are [N, H, W, C] and every standard deviation is
in pixel units. Axis letters: B posterior samples, N observations, H W C image,
h w measurement, M a flattened batch.

  import jax
  import posterior_jax as pj

  spectrum = pj.priors.power_law_spectrum(32, 32)
  prior = pj.priors.gaussian_prior(spectrum)
  truth = prior.sample(jax.random.key(0), (1,), channels=1)
  operator = pj.operators.gaussian_blur((32, 32, 1), size=9, std=1.5)
  noise = 0.05 * jax.random.normal(jax.random.key(1), truth.shape)
  observation = pj.Observation(operator.forward(truth) + noise, operator, 0.05)
  sampler = pj.nfc(pj.NFCConfig.calibrated(levels=10), spectrum=spectrum)
  samples, info = pj.run(
    sampler, prior.denoise, observation, jax.random.key(2), num_samples=4
  )  # [4, 1, 32, 32, 1]
"""

from posterior_jax import baselines as baselines
from posterior_jax import faulty_sums as _faulty_sums
from posterior_jax import metrics as metrics
from posterior_jax import noise as noise
from posterior_jax import operators as operators
from posterior_jax import priors as priors
from posterior_jax import uncertain as uncertain
from posterior_jax.base import Info as Info
from posterior_jax.base import Observation as Observation
from posterior_jax.base import Operator as Operator
from posterior_jax.base import Sampler as Sampler
from posterior_jax.base import SamplerState as SamplerState
from posterior_jax.denoising.tiling import padded as padded
from posterior_jax.denoising.tiling import tiled as tiled
from posterior_jax.nfc_sampler.config import NFCConfig as NFCConfig
from posterior_jax.nfc_sampler.sampler import nfc as nfc
from posterior_jax.sampling import recorded as recorded
from posterior_jax.sampling import run as run
from posterior_jax.sampling import streamed as streamed

_faulty_sums.avoid()

__all__ = (
  "Info",
  "NFCConfig",
  "Observation",
  "Operator",
  "Sampler",
  "SamplerState",
  "baselines",
  "metrics",
  "nfc",
  "noise",
  "operators",
  "padded",
  "priors",
  "recorded",
  "run",
  "streamed",
  "tiled",
  "uncertain",
)
