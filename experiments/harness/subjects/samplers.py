"""The posterior samplers that studies compare, by name and setting.

Every method has the settings "published", what its paper or code uses for a
task, and "tuned", one setting for all tasks from `experiments.tune_samplers`;
noise-frequency continuation has "calibrated" as well.
"""

import ast
import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from posterior_jax import NFCConfig, baselines, fields
from posterior_jax.base import Denoiser
from posterior_jax.baselines import Task, pnpdm_sampler

PUBLISHED, TUNED, CALIBRATED = "published", "tuned", "calibrated"


class Method(NamedTuple):
  """A method."""

  # by name, from a task, or None for none in particular, to the method's
  # config
  settings: Mapping[str, Callable[[Task | None], Any]]
  # (config, the prior's spectrum or None) -> Sampler
  build: Callable[[Any, jax.Array | None], posterior_jax.Sampler]
  # (config, evaluations) -> the config whose run calls the denoiser so
  # often for every image, or a little less; Jacobian products come on top
  spend: Callable[[Any, int], Any]


def _nfc(
  config: NFCConfig, spectrum: jax.Array | None
) -> posterior_jax.Sampler:
  return posterior_jax.nfc(config, spectrum=spectrum)


def _spend_nfc(config: NFCConfig, evaluations: int) -> NFCConfig:
  levels = max(evaluations // config.predictor.calls, 1)
  if not config.schedule.held:
    return config.replace(levels=levels)
  one = min(levels, config.levels)  # longer passes are no better
  return config.replace(levels=one, schedule={"passes": levels // one})


def _baseline(
  config: Any,
  sampler: Callable[[Any], posterior_jax.Sampler],
  levels: Callable[[Any, int], int] = lambda config, evaluations: evaluations,
  most: int = 1000,
) -> Method:
  """A baseline, from its config's class and how many levels a budget is worth.

  The DDPM noise levels that most of them use number at most `most`.
  """

  def spend(config: Any, evaluations: int) -> Any:
    count = min(max(levels(config, evaluations), 1), most)
    return dataclasses.replace(config, levels=count)

  return Method(
    {PUBLISHED: config.published, TUNED: config.tuned},
    lambda config, spectrum: sampler(config),
    spend,
  )


def _spend_pnpdm(config: baselines.PnPDMConfig, evaluations: int) -> int:
  endless = dataclasses.replace(config, levels=evaluations)
  total = np.cumsum(pnpdm_sampler.calls(endless))
  return int(np.searchsorted(total, evaluations, side="right"))


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
  "AdamDPS": _baseline(baselines.AdamDPSConfig, baselines.adamdps),
  "DAPS": _baseline(
    baselines.DAPSConfig,
    baselines.daps,
    lambda config, evaluations: evaluations // config.predictor_steps,
    most=10_000,
  ),
  "DDNM+": _baseline(baselines.DDNMConfig, baselines.ddnm),
  "DDRM": _baseline(baselines.DDRMConfig, baselines.ddrm),
  "DiffPIR": _baseline(
    baselines.DiffPIRConfig,
    baselines.diffpir,
    # Quadratic spacing takes a timestep twice beyond half of them.
    lambda config, evaluations: min(
      evaluations, 500 if config.spacing == "quadratic" else 1000
    ),
  ),
  "DPS": _baseline(baselines.DPSConfig, baselines.dps),
  "FAST-DIPS": _baseline(
    baselines.FASTDIPSConfig, baselines.fastdips, most=10_000
  ),
  "FGPS": _baseline(baselines.FGPSConfig, baselines.fgps),
  "MMPS": _baseline(baselines.MMPSConfig, baselines.mmps),
  "PiGDM": _baseline(baselines.PiGDMConfig, baselines.pigdm),
  "PnP-DM": _baseline(
    baselines.PnPDMConfig, baselines.pnpdm, _spend_pnpdm, most=10_000
  ),
  "RED-diff": _baseline(baselines.REDDiffConfig, baselines.reddiff),
  "SITCOM": _baseline(
    baselines.SITCOMConfig,
    baselines.sitcom,
    lambda config, evaluations: evaluations // config.steps,
  ),
}


def variants(
  methods: Iterable[str], settings: Container[str], budgets: tuple[int, ...]
) -> Iterator[tuple[str, str, int]]:
  """Method, setting and denoiser calls of everything that is compared.

  Args:
    methods: keys of METHODS, empty for all.
    settings: of the methods, empty for all they have.
    budgets: of tuned and calibrated settings; published ones run as they are,
      which is told by 0.
  """
  for method in methods or METHODS:
    for setting in METHODS[method].settings:
      if not settings or setting in settings:
        for budget in (0,) if setting == PUBLISHED else budgets:
          yield method, setting, budget


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
    **changes: fields that differ from the setting; "part.field" is one of a
      record of NFC's.

  Raises:
    ValueError: for an unknown method or setting, a field that the method does
      not have, or too few evaluations.
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
  found = changed(settings[setting](task), changes)
  if evaluations is None:
    return found
  if evaluations < 1:
    raise ValueError(f"evaluations must be at least 1, got {evaluations}")
  return METHODS[method].spend(found, evaluations)


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
  """A method's settings with changes by field, or by "part.field" of NFC's.

  Raises:
    ValueError: for a field that there is none of, or a value out of range.
  """
  return fields.changed(config, _nested(changes))


def assigned(words: Iterable[str]) -> dict[str, Any]:
  """Changes as a command line has them: {"a.b": 3.0} of "a.b=3.0".

  Raises:
    ValueError: for a word that is no assignment.
  """
  made = {}
  for word in words:
    path, sign, value = word.partition("=")
    if not (path and sign and value):
      raise ValueError(f"a change must be part.field=value, got {word!r}")
    try:
      made[path] = ast.literal_eval(value)
    except (SyntaxError, ValueError):  # a word, as of `solver=heun`
      made[path] = value
  return made


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
  """{"part": {"field": value}} of {"part.field": value}."""
  # All at once: one field alone may not go with what another is still to be.
  made: dict[str, Any] = {}
  for path, value in changes.items():
    *parts, name = path.split(".")
    inner = made
    for part in parts:
      inner = inner.setdefault(part, {})
      if not isinstance(inner, dict):
        raise ValueError(f"{path} must be left out, since {part} is given")
    inner[name] = value
  return made


class Drawn(NamedTuple):
  """Samples, and what they took."""

  samples: jax.Array  # [m, N, H, W, C]
  calls: jax.Array  # of the denoiser for every sample, scalar
  products: jax.Array  # with its Jacobian (VJPs), likewise


def draw(
  sampler: posterior_jax.Sampler, num_samples: int
) -> Callable[[Denoiser, posterior_jax.Observation, jax.Array], Drawn]:
  """(denoise, observation, key) -> Drawn, of m = `num_samples`."""

  def drawn(
    denoise: Denoiser, observation: posterior_jax.Observation, key: jax.Array
  ) -> Drawn:
    samples, info = posterior_jax.run(
      sampler, denoise, observation, key, num_samples=num_samples
    )
    return Drawn(samples, jnp.sum(info.calls), jnp.sum(info.products))

  return drawn


def build(
  method: str, config: Any, *, spectrum: jax.Array | None = None
) -> posterior_jax.Sampler:
  """The sampler of a config from `config`.

  Args:
    method: a key of METHODS.
    config: its settings.
    spectrum: the prior's, [H, W] or [H, W, C], for the methods that take one.
  """
  return METHODS[method].build(config, spectrum)
