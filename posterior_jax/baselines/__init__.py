"""Published posterior samplers in the protocol of `posterior_jax.run`.

  config = pj.baselines.DPSConfig.published("motion_blur")
  samples, info = pj.run(pj.baselines.dps(config), denoise, observation, key)

Every method is a frozen dataclass of settings with `published(task)`, what its
paper or code uses, and `tuned(task)`, the same setting for all, and a function
from settings to a `Sampler`. States are variance exploding, x = x0 + sigma n;
each docstring says how the published algorithm reads in these variables. The
module of a method is called NAME_sampler: `baselines.NAME` is the function.

  dps      gradient of the residual's norm through the denoiser
  adamdps  its moments kept from level to level, by Adam
  fgps     as dps, on a growing band of low frequencies
  pigdm    Gaussian likelihood, one variance for every pixel
  mmps     Gaussian likelihood, the denoiser's Jacobian as covariance
  daps     a draw of the clean image at every level, then fresh noise
  sitcom   optimises the denoiser's input at every level, then fresh noise
  fastdips the clean image moved into a ball about the data, then fresh noise
  diffpir  proximal data step on the clean image, then DDIM
  ddrm     DDIM in the singular vectors of the operator
  ddnm     data in its range, DDIM in the rest
  pnpdm    split Gibbs: data and prior by turns
  reddiff  Adam on the image, the denoiser as regulariser
"""

from posterior_jax.baselines.adamdps_sampler import (
  AdamDPSConfig as AdamDPSConfig,
)
from posterior_jax.baselines.adamdps_sampler import adamdps as adamdps
from posterior_jax.baselines.daps_sampler import DAPSConfig as DAPSConfig
from posterior_jax.baselines.daps_sampler import daps as daps
from posterior_jax.baselines.ddnm_sampler import DDNMConfig as DDNMConfig
from posterior_jax.baselines.ddnm_sampler import ddnm as ddnm
from posterior_jax.baselines.ddrm_sampler import DDRMConfig as DDRMConfig
from posterior_jax.baselines.ddrm_sampler import ddrm as ddrm
from posterior_jax.baselines.diffpir_sampler import (
  DiffPIRConfig as DiffPIRConfig,
)
from posterior_jax.baselines.diffpir_sampler import diffpir as diffpir
from posterior_jax.baselines.dps_sampler import DPSConfig as DPSConfig
from posterior_jax.baselines.dps_sampler import dps as dps
from posterior_jax.baselines.fastdips_sampler import (
  FASTDIPSConfig as FASTDIPSConfig,
)
from posterior_jax.baselines.fastdips_sampler import fastdips as fastdips
from posterior_jax.baselines.fgps_sampler import FGPSConfig as FGPSConfig
from posterior_jax.baselines.fgps_sampler import fgps as fgps
from posterior_jax.baselines.mmps_sampler import MMPSConfig as MMPSConfig
from posterior_jax.baselines.mmps_sampler import mmps as mmps
from posterior_jax.baselines.pigdm_sampler import PiGDMConfig as PiGDMConfig
from posterior_jax.baselines.pigdm_sampler import pigdm as pigdm
from posterior_jax.baselines.pnpdm_sampler import PnPDMConfig as PnPDMConfig
from posterior_jax.baselines.pnpdm_sampler import pnpdm as pnpdm
from posterior_jax.baselines.reddiff_sampler import (
  REDDiffConfig as REDDiffConfig,
)
from posterior_jax.baselines.reddiff_sampler import reddiff as reddiff
from posterior_jax.baselines.sitcom_sampler import SITCOMConfig as SITCOMConfig
from posterior_jax.baselines.sitcom_sampler import sitcom as sitcom
from posterior_jax.baselines.tasks import TASKS as TASKS
from posterior_jax.baselines.tasks import Task as Task

__all__ = (
  "TASKS",
  "AdamDPSConfig",
  "DAPSConfig",
  "DDNMConfig",
  "DDRMConfig",
  "DPSConfig",
  "DiffPIRConfig",
  "FASTDIPSConfig",
  "FGPSConfig",
  "MMPSConfig",
  "PiGDMConfig",
  "PnPDMConfig",
  "REDDiffConfig",
  "SITCOMConfig",
  "Task",
  "adamdps",
  "daps",
  "ddnm",
  "ddrm",
  "diffpir",
  "dps",
  "fastdips",
  "fgps",
  "mmps",
  "pigdm",
  "pnpdm",
  "reddiff",
  "sitcom",
)
