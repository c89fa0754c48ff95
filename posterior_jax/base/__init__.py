"""The contracts of the package: what flows between its parts.

Axis letters: B posterior samples per observation, N observations, H W C image
height, width and channels, h w measurement height and width. Pixels lie in
[-1, 1]; every standard deviation (`sigma`, `noise_std`) is in that unit.
"""

from posterior_jax.base.check import check_observation as check_observation
from posterior_jax.base.observation import Observation as Observation
from posterior_jax.base.observation import misfit as misfit
from posterior_jax.base.observation import (
  normalised_residual as normalised_residual,
)
from posterior_jax.base.operator import Linear as Linear
from posterior_jax.base.operator import Operator as Operator
from posterior_jax.base.operator import SolveInfo as SolveInfo
from posterior_jax.base.sampler import Denoiser as Denoiser
from posterior_jax.base.sampler import Info as Info
from posterior_jax.base.sampler import Sampler as Sampler
from posterior_jax.base.sampler import SamplerState as SamplerState
from posterior_jax.base.sampler import State as State
