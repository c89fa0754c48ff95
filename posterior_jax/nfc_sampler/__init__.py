"""Noise-frequency continuation: a sampler composed of parts.

`sampler` composes them; `parts` gives their signatures, `from_config` chooses
them from the settings (`config`, six of them in `presets`, those found for a
task in `tuned`, with `records`, `schedule_settings` and `weights` for its parts
and `combinations` for what goes together), `levels` says what changes from
level to level, `states` how a run starts and is renoised. The parts' own
mathematics: prediction in `denoising.predictor`, bands and likelihood in
`likelihood`, the `width` of the tie, wavelet `fusion`.
"""

from posterior_jax.nfc_sampler.config import NFCConfig as NFCConfig
from posterior_jax.nfc_sampler.from_config import parts_of as parts_of
from posterior_jax.nfc_sampler.levels import Level as Level
from posterior_jax.nfc_sampler.levels import levels_of as levels_of
from posterior_jax.nfc_sampler.parts import Parts as Parts
from posterior_jax.nfc_sampler.parts import Prediction as Prediction
from posterior_jax.nfc_sampler.parts import Refined as Refined
from posterior_jax.nfc_sampler.parts import Width as Width
from posterior_jax.nfc_sampler.records import Denoise as Denoise
from posterior_jax.nfc_sampler.records import Exact as Exact
from posterior_jax.nfc_sampler.records import Gradient as Gradient
from posterior_jax.nfc_sampler.records import Jacobian as Jacobian
from posterior_jax.nfc_sampler.records import Langevin as Langevin
from posterior_jax.nfc_sampler.records import Mean as Mean
from posterior_jax.nfc_sampler.records import Ode as Ode
from posterior_jax.nfc_sampler.records import Probed as Probed
from posterior_jax.nfc_sampler.records import Sigma as Sigma
from posterior_jax.nfc_sampler.records import Spectrum as Spectrum
from posterior_jax.nfc_sampler.sampler import compose as compose
from posterior_jax.nfc_sampler.sampler import nfc as nfc
from posterior_jax.nfc_sampler.schedule_settings import Schedule as Schedule
from posterior_jax.nfc_sampler.weights import Band as Band
from posterior_jax.nfc_sampler.weights import Exponential as Exponential
from posterior_jax.nfc_sampler.weights import Fusion as Fusion
from posterior_jax.nfc_sampler.weights import Power as Power
from posterior_jax.nfc_sampler.weights import Radial as Radial
from posterior_jax.nfc_sampler.weights import Snr as Snr
