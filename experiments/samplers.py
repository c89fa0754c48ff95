"""The posterior samplers that studies compare, by name and setting.

Every method has the settings "published", what its paper or code uses for a
task, and "tuned", one setting for all tasks from `experiments.tune_samplers`;
noise-frequency continuation has "calibrated" as well.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

import posterior_jax
from posterior_jax import NFCConfig, baselines, predictor
from posterior_jax.baselines import Task

PUBLISHED, TUNED, CALIBRATED = "published", "tuned", "calibrated"


class Method(NamedTuple):
  """A method.

  Attributes:
    settings: by name, from a task, or None for none in particular, to the
      method's config.
    build: (config, the prior's spectrum or None) -> Sampler.
    spend: (config, evaluations) -> the config whose run calls the denoiser so
      often for every image, or a little less; Jacobian products come on top.
  """

  settings: Mapping[str, Callable[[Task | None], Any]]
  build: Callable[[Any, jax.Array | None], posterior_jax.Sampler]
  spend: Callable[[Any, int], Any]


def _nfc(
  config: NFCConfig, spectrum: jax.Array | None
) -> posterior_jax.Sampler:
  return posterior_jax.nfc(config, spectrum=spectrum)


def _spend_nfc(config: NFCConfig, evaluations: int) -> NFCConfig:
  each = predictor.calls(config.predictor, config.predictor_steps)
  return dataclasses.replace(config, levels=max(evaluations // each, 1))


def _baseline(
  config: Any,
  sampler: Callable[[Any], posterior_jax.Sampler],
  each: Callable[[Any], int] = lambda config: 1,
  most: int = 1000,
) -> Method:
  """A rival, from its config's class, with `each` calls a level.

  The DDPM noise levels that most of them use number at most `most`.
  """

  def spend(config: Any, evaluations: int) -> Any:
    levels = min(max(evaluations // each(config), 1), most)
    return dataclasses.replace(config, levels=levels)

  return Method(
    {PUBLISHED: config.published, TUNED: lambda task: config.tuned()},
    lambda config, spectrum: sampler(config),
    spend,
  )


METHODS: dict[str, Method] = {
  "NFC": Method(
    {
      PUBLISHED: lambda task: NFCConfig.paper(),
      TUNED: lambda task: NFCConfig.restoration(),
      CALIBRATED: lambda task: NFCConfig.calibrated(),
    },
    _nfc,
    _spend_nfc,
  ),
  "DAPS": _baseline(
    baselines.DAPSConfig,
    baselines.daps,
    lambda config: config.predictor_steps,
    most=10_000,
  ),
  "DPS": _baseline(baselines.DPSConfig, baselines.dps),
  "FGPS": _baseline(baselines.FGPSConfig, baselines.fgps),
  "MMPS": _baseline(baselines.MMPSConfig, baselines.mmps),
  "PiGDM": _baseline(baselines.PiGDMConfig, baselines.pigdm),
  "SITCOM": _baseline(
    baselines.SITCOMConfig, baselines.sitcom, lambda config: config.steps
  ),
}


def config(
  method: str,
  setting: str,
  *,
  task: Task | None = None,
  evaluations: int | None = None,
  **changes: Any,
) -> Any:
  """A method's settings.

  Args:
    method: a key of METHODS.
    setting: a key of its settings.
    task: what published settings may depend on.
    evaluations: denoiser calls a run may spend on every image; None: as many
      as the setting does.
    **changes: fields that differ from the setting.

  Returns:
    The method's config.

  Raises:
    ValueError: for an unknown method or setting, or too few evaluations.
    TypeError: for a field that the method does not have.
  """
  if method not in METHODS:
    raise ValueError(
      f"method must be one of {', '.join(METHODS)}; got {method!r}"
    )
  settings = METHODS[method].settings
  if setting not in settings:
    raise ValueError(
      f"setting of {method} must be one of {', '.join(settings)}; got "
      f"{setting!r}"
    )
  found = dataclasses.replace(settings[setting](task), **changes)
  if evaluations is None:
    return found
  if evaluations < 1:
    raise ValueError(f"evaluations must be at least 1, got {evaluations}")
  return METHODS[method].spend(found, evaluations)


def build(
  method: str, config: Any, *, spectrum: jax.Array | None = None
) -> posterior_jax.Sampler:
  """The sampler of a config from `config`.

  Args:
    method: a key of METHODS.
    config: its settings.
    spectrum: the prior's, [H, W] or [H, W, C], for the methods that take one.

  Returns:
    The sampler, for `posterior_jax.run`.
  """
  return METHODS[method].build(config, spectrum)
