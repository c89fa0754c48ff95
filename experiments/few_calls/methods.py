"""All methods by name: `fast()`, its variants, the baselines, a slow one."""

from typing import Any

import posterior_jax as pj
from experiments.few_calls import variants
from experiments.few_calls.contenders import BASELINES, Contender, scanned

FAST, SLOW = "NFC, fast()", "NFC, restoration()"


def _fast(evaluations: int) -> Any:
  def run(operands, denoise, observation, key, spectrum):
    del operands
    config = pj.NFCConfig.fast(
      levels=evaluations, predictor=variants.ANY_WAY_UP
    )
    sampler = pj.nfc(config, spectrum=spectrum)
    return scanned(sampler, denoise, observation, key)

  return run


def _restoration(evaluations: int) -> Any:
  del evaluations

  def run(operands, denoise, observation, key, spectrum):
    del operands, spectrum
    sampler = pj.nfc(pj.NFCConfig.restoration(levels=100))
    return scanned(sampler, denoise, observation, key)

  return run


def _fixed(restore: Any, *, shared: bool = False) -> Contender:
  return Contender(lambda _: (), lambda *_: {}, restore, shared=shared)


# In the order of the work. The slow one, about 500 evaluations, says how much
# there is to gain.
METHODS: dict[str, Contender] = {
  FAST: _fixed(_fast),
  **variants.VARIANTS,
  **BASELINES,
  SLOW: _fixed(_restoration, shared=True),
}
