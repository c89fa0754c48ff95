"""Noise-frequency continuation: a sampler composed of parts.

`sampler` composes them; `parts` gives their signatures, `from_config` chooses
them from the settings (`config`), `levels` says what changes from level to
level. The parts' own mathematics: prediction in `denoising.predictor`, bands
and likelihood in `likelihood`, the `width` of the tie, wavelet `fusion`.
"""

from posterior_jax.nfc_sampler.config import NFCConfig as NFCConfig
from posterior_jax.nfc_sampler.from_config import parts_of as parts_of
from posterior_jax.nfc_sampler.levels import Level as Level
from posterior_jax.nfc_sampler.levels import levels_of as levels_of
from posterior_jax.nfc_sampler.parts import Parts as Parts
from posterior_jax.nfc_sampler.parts import Prediction as Prediction
from posterior_jax.nfc_sampler.parts import Refined as Refined
from posterior_jax.nfc_sampler.parts import Width as Width
from posterior_jax.nfc_sampler.sampler import compose as compose
from posterior_jax.nfc_sampler.sampler import nfc as nfc
