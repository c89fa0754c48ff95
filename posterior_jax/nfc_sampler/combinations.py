"""Which parts go together, and where the linear solves of a choice stop."""

from typing import Any, NamedTuple

import jax

from posterior_jax.nfc_sampler.records import (
  Denoise,
  Exact,
  Inner,
  Jacobian,
  Mean,
  Ode,
  Predictor,
  Probed,
  Sigma,
  Spectrum,
  Width,
)
from posterior_jax.nfc_sampler.schedule_settings import Schedule

# Fewer levels than this cannot make up for what few iterations leave out.
_FEW_LEVELS = 20
# Noise at which the levels end where the settings leave it open: a width that
# knows the prior's spectrum stays right at less noise than others.
_SIGMA_MIN_BY_SPECTRUM, _SIGMA_MIN = 0.02, 0.1
# Largest width, in variances of the next level's noise, under which that of the
# measurement stays below it (`states.filling`).
_FILLED = 2.0
# What other fields must be then: its sizes add up where the likelihood has the
# measurement's own noise and the moved image goes on as it is.
_WITH_FILLED: dict[str, tuple] = {
  "band": (None,),
  "fusion": (None,),
  "inner_noise_std": (None,),
  "halved_misfit": (True,),
  "linearisations": (1, None),
}


class Stop(NamedTuple):
  """Where a linear solve stops."""

  tolerance: float
  max_iterations: int


def check(width: Width, predictor: Predictor, inner: Inner) -> None:
  """Refuses parts that do not go together.

  Raises:
    ValueError: naming the part, what it is and what it must be.
  """
  name = type(width).__name__
  # A Jacobian is of one denoiser call at the level's own image: an ODE's end
  # point has another.
  if isinstance(width, Probed | Jacobian):
    _need("predictor", predictor, (Denoise,), f"width {name}")
  if isinstance(width, Jacobian):
    if width.guess is not None:
      _need("inner", inner, (Mean,), "a guess of the width")
    _need("inner", inner, (Exact, Mean), f"width {name}")
  elif isinstance(inner, Exact) and inner.root_steps is not None:
    raise ValueError(
      f"root_steps must be None unless width is Jacobian, got "
      f"{inner.root_steps} with {name}"
    )


def check_levels(
  schedule: Schedule, levels: int, held: int, sigma_min: float
) -> None:
  """Refuses a schedule that so many levels, of which some are held, leave idle.

  Raises:
    ValueError: naming the field, what it is and what it must be.
  """
  if not sigma_min < schedule.sigma_max:
    raise ValueError(
      f"sigma_max must lie above {sigma_min}, where the levels of this width "
      f"end, got {schedule.sigma_max}"
    )
  if schedule.passes > 1 and not held:
    raise ValueError(
      f"passes must be 1 unless levels are held, got {schedule.passes} with "
      f"held {schedule.held} of {levels} levels"
    )


def check_filled(
  schedule: Schedule,
  width: Width,
  inner: Inner,
  predictor: Predictor,
  **others: Any,
) -> None:
  """Refuses what has no rule for noise that is filled in.

  Args:
    schedule: whose noise may be filled in.
    width: of the tie.
    inner: method.
    predictor: of the clean image.
    **others: fields of `NFCConfig` that none of these has.

  Raises:
    ValueError: naming the part, what it is and what it must be.
  """
  if schedule.noise != "filled":
    return
  beside = "noise filled"
  _need("width", width, (Sigma,), beside)
  _need("inner", inner, (Mean,), beside)
  _only("relaxation", schedule.relaxation, (1.0,), beside)
  _check_filled_width(width, beside)
  if isinstance(predictor, Denoise):
    _only("discrepancy", predictor.discrepancy, (0.0,), beside)
  for name, allowed in _WITH_FILLED.items():
    _only(name, others[name], allowed, beside)
  if schedule.held and schedule.averaged != "predicted":
    raise ValueError(
      f"averaged must be predicted with {beside}, since refined images have "
      f"noise, got {schedule.averaged}"
    )


def check_kept(
  schedule: Schedule, inner: Inner, predictor: Predictor, held: int
) -> None:
  """Refuses what has no rule for noise that is kept, or does nothing then.

  Args:
    schedule: whose noise may be kept.
    inner: method.
    predictor: of the clean image.
    held: how many levels are.

  Raises:
    ValueError: naming the part, what it is and what it must be.
  """
  if schedule.noise != "kept":
    return
  beside = "noise kept"
  # The noise beside a draw is not that of the state.
  _need("inner", inner, (Mean,), beside)
  if isinstance(predictor, Denoise):
    _only("discrepancy", predictor.discrepancy, (0.0,), beside)
  # State and noise of held levels are the same: so is what each of them makes.
  turned = isinstance(predictor, Denoise) and predictor.turned
  if held > 1 and not turned:
    raise ValueError(
      f"held must hold at most one level of a pass with {beside} unless the "
      f"predictor is turned, got {schedule.held}, which holds {held}: all of "
      "them would make the same image"
    )


def _check_filled_width(width: Width, beside: str) -> None:
  assert isinstance(width, Sigma)  # others are refused before
  # One that is traced is known only when it runs.
  known = not isinstance(width.factor, jax.core.Tracer)
  if known and width.factor > _FILLED:
    raise ValueError(
      f"factor must be at most {_FILLED:g} with {beside}, where the "
      "measurement would bring in more noise than the level has, got "
      f"{width.factor}"
    )


def check_end(predictor: Predictor, first_sigma: float) -> None:
  """Refuses an ODE that takes a step at no level, or ValueError."""
  # One that is traced is known only when it runs.
  if not isinstance(predictor, Ode) or isinstance(
    predictor.sigma_end, jax.core.Tracer
  ):
    return
  if not predictor.sigma_end < first_sigma:
    raise ValueError(
      "sigma_end must lie below the noise of the first level, "
      f"{first_sigma}, got {predictor.sigma_end}"
    )


def check_linearisations(inner: Inner, linearisations: int | None) -> None:
  """Refuses linearisations that an inner method does not make."""
  if linearisations is not None:
    _need("inner", inner, (Exact, Mean), "linearisations")


def _need(name: str, value: Any, kinds: tuple[type, ...], beside: str) -> None:
  if not isinstance(value, kinds):
    raise ValueError(
      f"{name} must be {' or '.join(kind.__name__ for kind in kinds)} with "
      f"{beside}, got {type(value).__name__}"
    )


def _only(name: str, value: Any, allowed: tuple, beside: str) -> None:
  # One that is traced acts.
  if isinstance(value, jax.core.Tracer) or value not in allowed:
    raise ValueError(
      f"{name} must be {' or '.join(map(str, allowed))} with {beside}, got "
      f"{value!r}"
    )


def sigma_min_of(schedule: Schedule, width: Width) -> float:
  """Noise at which levels end, as `NFCConfig.sigma_min` says."""
  if schedule.sigma_min is not None:
    return schedule.sigma_min
  by_spectrum = isinstance(width, Spectrum)
  return _SIGMA_MIN_BY_SPECTRUM if by_spectrum else _SIGMA_MIN


def stop_of(width: Width, inner: Inner, levels: int) -> Stop:
  """Where the solves of `Exact` and `Mean` stop, as `NFCConfig.stop` says."""
  averages = isinstance(inner, Mean)
  found = Stop(1e-4 if averages else 1e-6, 500)
  if isinstance(width, Jacobian):
    few = levels < _FEW_LEVELS
    found = Stop(1e-2, 3 if averages and not few else 20)
    if width.guess is not None:
      found = Stop(1e-2, 1)
  if not isinstance(inner, Exact | Mean):
    return found
  set_here = {
    name: getattr(inner, name)
    for name in Stop._fields
    if getattr(inner, name) is not None
  }
  return found._replace(**set_here)
