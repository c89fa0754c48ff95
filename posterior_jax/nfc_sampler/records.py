"""The parts of noise-frequency continuation as settings: frozen records.

`NFCConfig` holds one record per part. A record has the options that its part
reads and no others, so an option that nothing would read cannot be written.
That of the levels is in `schedule_settings`, those of band and fusion are in
`weights`.
"""

import dataclasses
from typing import Literal

from posterior_jax import fields
from posterior_jax.denoising import predictor

# Wide enough for any use; narrow enough that a slip (a count for a share,
# degrees for radians) is refused by name.
_COUNT = (1, 1000)
_SHARE = (0.0, 1.0)
_FACTOR = (0.01, 100.0)
_TOLERANCE = (1e-7, 1e-1)
_ITERATIONS = (1, 100_000)


@dataclasses.dataclass(frozen=True)
class Denoise:
  """Predicts by one call of the denoiser: the posterior mean.

  Attributes:
    discrepancy: q, 0 to 2. The noise that the denoiser takes out is
      sigma r^-q, r = |y - A x0|^2 / (m s^2) of the last prediction of the same
      image, kept within [1/2, 4]: where r is above 1 the last one took out
      what was measured (Morozov's discrepancy principle). 0 takes sigma, which
      is right where noise is added anew at every level. A prediction also loses
      detail that the prior does not know, and then the rule leaves noise in,
      which a blur's solve amplifies at the next level: with 0.5 single pictures
      lose up to 8 dB at 5 levels of a short motion kernel. Nothing warns of it.
      0.25 loses at most 0.5 dB there under the tie of `NFCConfig.fast` at noise
      0.05, but 1 at noise 0.01, and 5 on a picture under a factor of 6.1 in the
      place of 4.35: for blurs of less noise or under wider ties take 0.
    turned: whether every level shows the denoiser the image mirrored or
      transposed in another of eight ways, as DPIR's code does: a network's
      errors are not the same for all. An image that is not square is mirrored.
      For a prior that knows pictures any way up alone: a network of upright
      faces predicts wrongly, which costs several dB, and a spectrum that is not
      the same along rows and columns worse.
  """

  discrepancy: float = 0.0
  turned: bool = False

  def __post_init__(self) -> None:
    fields.check(self, {"discrepancy": (0.0, 2.0)})

  @property
  def calls(self) -> int:
    """Of the denoiser per level."""
    return 1


@dataclasses.dataclass(frozen=True)
class Ode:
  """Predicts by the probability-flow ODE, as published.

  Attributes:
    solver: "euler", "heun" or "dpm_solver_2m".
    steps: per level.
    sigma_end: where it stops, > 0 and below the noise of the first level; a
      level that is already below it takes no step.
  """

  solver: Literal["euler", "heun", "dpm_solver_2m"] = "euler"
  steps: int = 5
  sigma_end: float = 0.01

  def __post_init__(self) -> None:
    fields.check(self, {"steps": _COUNT})

  @property
  def calls(self) -> int:
    """Of the denoiser per level."""
    return predictor.calls(self.solver, self.steps)


@dataclasses.dataclass(frozen=True)
class Sigma:
  """Width sigma^2 in every direction, as published.

  Attributes:
    factor: on it, 0.01 to 100; as for every width, above 1 the measurement
      moves the prediction further than the prior's width allows.
    most: largest width, as a standard deviation; None: none. At high noise
      directions that A dampens to less than noise_std / most do not move
      then, which a pseudo-inverse would amplify.
  """

  factor: float = 1.0
  most: float | None = None

  def __post_init__(self) -> None:
    fields.check(self, {"factor": _FACTOR})


@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Width S sigma^2 / (S + sigma^2) by the prior's power spectrum S.

  Attributes:
    factor: on it.
    inflation: largest factor, 1 to 100, up or down, on the width of one image,
      chosen at every level so that the misfit of its prediction is what width
      and noise make it (`width.inflated_variance`); 1: none. Sensitive to
      underestimated noise, which looks like such a misfit: the more so, the
      larger the factor.
  """

  factor: float = 1.0
  inflation: float = 1.0

  def __post_init__(self) -> None:
    fields.check(self, {"factor": _FACTOR, "inflation": (1.0, 100.0)})


@dataclasses.dataclass(frozen=True)
class Probed(Spectrum):
  """`Spectrum`, put right in every half octave by the denoiser's Jacobian.

  Per observation (`width.corrected_variance`), one VJP per level. Goes with
  `Denoise` only, whose Jacobian it is.
  """


@dataclasses.dataclass(frozen=True)
class Jacobian:
  """Width sigma^2 dD/dx itself, by VJPs; needs no spectrum.

  One VJP per iteration of the solve; with `Exact` another one per step of the
  root. Goes with `Denoise`, and with `Exact` or `Mean`: a product
  gives draws and means, but no gradient, which would need the inverse.

  Attributes:
    factor: on it.
    guess: about what it is, with `Mean`: it preconditions the solve, so that
      one iteration is a move along the direction of PiGDM by the length that is
      best under the Jacobian (`covariance.guessed_mean`). None: no guess.
  """

  factor: float = 1.0
  guess: Sigma | None = None

  def __post_init__(self) -> None:
    fields.check(self, {"factor": _FACTOR})


@dataclasses.dataclass(frozen=True)
class Exact:
  """Draws from the level's target.

  Attributes:
    tolerance: relative residual of the linear solve; None: 1e-6, or 1e-2 with
      `Jacobian`, whose early levels may stop short: later ones correct it.
    max_iterations: its limit; None: 500, or 20 with `Jacobian`.
    root_steps: products for the square root of the width (`krylov.root`), with
      `Jacobian` only; None: 6 there.
  """

  tolerance: float | None = None
  max_iterations: int | None = None
  root_steps: int | None = None

  def __post_init__(self) -> None:
    ranges = {"tolerance": _TOLERANCE, "max_iterations": _ITERATIONS}
    fields.check(self, ranges | {"root_steps": _COUNT})


@dataclasses.dataclass(frozen=True)
class Mean:
  """Takes the level's target's minimiser, which is its mean.

  Attributes:
    tolerance: relative residual of the linear solve; None: 1e-4, a mean having
      no noise to hide errors in; 1e-2 with `Jacobian`.
    max_iterations: its limit; None: 500; with `Jacobian` 3, and 20 where there
      are fewer than 20 levels to make up for what three leave out; 1 with a
      guess of the Jacobian.
  """

  tolerance: float | None = None
  max_iterations: int | None = None

  def __post_init__(self) -> None:
    ranges = {"tolerance": _TOLERANCE, "max_iterations": _ITERATIONS}
    fields.check(self, ranges)


@dataclasses.dataclass(frozen=True)
class Langevin:
  """The paper's updates: noisy gradient steps on the target.

  Attributes:
    steps: per level.
    step_size: in pixel^2; it diverges above 2 over the largest curvature,
      about 2 tau^2 for an operator of norm 1.
    decay: factor of the step size at the last level, reached linearly.
  """

  steps: int = 200
  step_size: float = 1e-4
  decay: float = 1.0

  def __post_init__(self) -> None:
    fields.check(self, {"steps": _ITERATIONS, "decay": _SHARE})


@dataclasses.dataclass(frozen=True)
class Gradient:
  """Steepest descent towards the target's minimiser.

  Attributes:
    steps: per level.
  """

  steps: int = 200

  def __post_init__(self) -> None:
    fields.check(self, {"steps": _ITERATIONS})


Predictor = Denoise | Ode
Width = Sigma | Spectrum | Probed | Jacobian
Inner = Exact | Mean | Langevin | Gradient
