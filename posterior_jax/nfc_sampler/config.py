"""The settings of noise-frequency continuation, and three named ones."""

import dataclasses
from typing import Any, Literal

import numpy as np

from posterior_jax import fields
from posterior_jax.denoising.predictor import Predictor
from posterior_jax.likelihood.bands import Blend, Shape
from posterior_jax.nfc_sampler import fusion
from posterior_jax.nfc_sampler.fusion import Unlock, Wavelet

Inner = Literal["exact", "mean", "gradient", "langevin"]
Tie = Literal["sigma", "spectrum", "probed", "jacobian"]
Cutoff = Literal["step", "log_sigma", "snr"]
Averaged = Literal["refined", "predicted"]

# A Jacobian is of one denoiser call at the level's own image: an ODE's end
# point has another. Its products give draws and means, but no gradient of the
# tie, which would need the inverse.
_NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
  "probed": {"predictor": ("denoise",)},
  "jacobian": {"predictor": ("denoise",), "inner": ("exact", "mean")},
}
# Wide enough for any use; narrow enough that a slip (a count for a share,
# degrees for radians) is refused by name.
_RANGES = {
  "levels": (1, 10_000),
  "passes": (1, 1000),
  "held": (0.0, 0.99),
  "rho": (1e-3, 100.0),
  "predictor_steps": (1, 1000),
  "cutoff_start": (1e-3, 1.0),
  "cutoff_end": (1e-3, 1.0),
  "blend_start": (0.0, 1.0),
  "inner_steps": (1, 100_000),
  "step_size_decay": (0.0, 1.0),
  "width_factor": (0.01, 100.0),
  "inflation": (1.0, 100.0),
  "tolerance": (1e-7, 1e-1),
  "max_iterations": (1, 100_000),
  "root_steps": (1, 1000),
  "haar_levels": (1, 3),
  "haar_low": (0.0, 1.0),
  "haar_high": (0.0, 1.0),
  "unlock_start": (0.0, 1.0),
  "unlock_end": (0.0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class NFCConfig:
  """Settings of `nfc`; every standard deviation is in pixels of [-1, 1].

  Attributes:
    levels: noise levels of a pass, 1 to 10000.
    passes: how often all levels are gone through, 1 to 1000; each later pass
      starts from the last one's image under the noise of the first level, which
      all but hides it, and adds its held levels to one average. 1 unless held.
    sigma_max: first level.
    sigma_min: where the polynomial ramp would end; the node itself is replaced
      by 0 (`schedule.karras`).
    rho: exponent of the ramp.
    held: share of the levels, the last ones, that stay at sigma_min and whose
      images are averaged into the result, 0 to 0.99; 0: the ramp ends in 0.
      Held levels are a Gibbs sampler of p(x0, x_sigma | y) at one noise, so
      that the average of their refined images goes to the posterior mean.
    averaged: which images of held levels: "predicted", the denoiser's answer
      before it is moved towards the measurement, or "refined", after that.
    predictor: "denoise" (the posterior mean, one call per level), or the
      probability-flow ODE by "euler", "heun" or "dpm_solver_2m".
    predictor_steps: ODE steps per level; ignored by "denoise".
    predictor_sigma_min: where the ODE stops, > 0; ignored by "denoise".
    cutoff: how the band widens: linearly in the "step" or in "log_sigma", or
      "snr": frequency by frequency as the prior's power rises above the noise.
    cutoff_start: first cutoff, fraction of the largest radius; not for "snr".
    cutoff_end: last cutoff; not for "snr".
    band_shape: "hard", "butterworth" or "gaussian"; not for "snr".
    blend: "convex" or "additive" mixing of the banded misfit.
    blend_start: weight of the banded misfit at the first level, falling to 0
      by a cosine; 0 turns the band off at every level.
    inner: "exact" draws from the level's target, "mean" takes its minimiser,
      "gradient" steepest descent towards it, "langevin" the paper's updates.
    inner_steps: of "gradient" and "langevin".
    step_size: of "langevin", in pixel^2; it diverges above 2 over the largest
      curvature, about 2 tau^2 for an operator of norm 1.
    step_size_decay: factor of the step size at the last level, reached
      linearly.
    inner_noise_std: tau, the noise that the likelihood assumes; None is the
      observation's.
    halved_misfit: whether the likelihood is exp(-|r|^2 / (2 tau^2)); False
      leaves out the 2, as the code of DAPS does.
    tie: width C of the tie to the prediction: "sigma" is sigma^2, "spectrum"
      the prior's own S sigma^2 / (S + sigma^2), which needs a spectrum;
      "probed" is that put right in every half octave by the denoiser's Jacobian
      (`width.corrected_variance`), per observation, one VJP per level;
      "jacobian" is sigma^2 times the Jacobian itself and needs no spectrum, but
      root_steps + 1 VJPs per level and one per iteration (no root_steps with
      inner "mean"). Both go with predictor "denoise", the last also with inner
      "exact" or "mean" only.
    width_factor: factor on that width, 0.01 to 100: above 1 the measurement
      moves the prediction further than the prior's width allows.
    inflation: largest factor, 1 to 100, up or down, on the width of one image,
      chosen at every level so that the misfit of its prediction is what width
      and noise make it (`width.inflated_variance`); 1: none. Only with tie
      "spectrum" or "probed". Sensitive to underestimated noise, which
      looks like such a misfit: the more so, the larger the factor.
    tolerance: relative residual of the linear solves of "exact" and "mean".
    max_iterations: their limit.
    root_steps: products for the square root of the width (`krylov.root`);
      read by tie "jacobian" with inner "exact" only.
    wavelet: of the fusion: "haar", "db2" or "bior4.4".
    haar_levels: of the wavelet, 1 to 3.
    haar_low: weight of the refined image in the low-low band.
    haar_high: weight of the refined image in the details, w_H.
    unlock: how u, which rises linearly by step from unlock_start to unlock_end,
      sets that weight: "product" w_H u, "clip" min(u, w_H), "base" w_H +
      (1 - w_H) u, or "delay", w_H until the share unlock_start of the steps is
      done and then linearly to 1 at unlock_end (`fusion.unlocked`).
    unlock_start: u at the first level.
    unlock_end: u at the last level.

  Raises:
    ValueError: for a value out of range, by name.

  Example:
    >>> import posterior_jax as pj
    >>> pj.NFCConfig(levels=20, held=0.5).held_levels
    10
    >>> pj.NFCConfig(levels=0)
    Traceback (most recent call last):
    ValueError: levels must lie in [1, 10000], got 0
  """

  levels: int = 200
  passes: int = 1
  sigma_max: float = 100.0
  sigma_min: float = 0.1
  rho: float = 7.0
  held: float = 0.0
  averaged: Averaged = "refined"
  predictor: Predictor = "denoise"
  predictor_steps: int = 5
  predictor_sigma_min: float = 0.01
  cutoff: Cutoff = "step"
  cutoff_start: float = 0.4
  cutoff_end: float = 1.0
  band_shape: Shape = "hard"
  blend: Blend = "convex"
  blend_start: float = 0.0
  inner: Inner = "exact"
  inner_steps: int = 200
  step_size: float = 1e-4
  step_size_decay: float = 1.0
  inner_noise_std: float | None = None
  halved_misfit: bool = True
  tie: Tie = "spectrum"
  width_factor: float = 1.0
  inflation: float = 1.0
  tolerance: float = 1e-6
  max_iterations: int = 500
  root_steps: int = 10
  wavelet: Wavelet = "haar"
  haar_levels: int = 1
  haar_low: float = 1.0
  haar_high: float = 1.0
  unlock: Unlock = "product"
  unlock_start: float = 1.0
  unlock_end: float = 1.0

  def __post_init__(self) -> None:
    fields.check(self, _RANGES)
    if not 0 < self.sigma_min < self.sigma_max:
      raise ValueError(
        f"sigma_min must lie in (0, sigma_max), got {self.sigma_min} with "
        f"sigma_max {self.sigma_max}"
      )
    if self.passes > 1 and not self.held_levels:
      raise ValueError(
        f"passes must be 1 unless levels are held, got {self.passes} with "
        f"held {self.held} of {self.levels} levels"
      )
    if self.inflation > 1 and self.tie not in ("spectrum", "probed"):
      raise ValueError(
        'inflation must be 1 unless tie is "spectrum" or "probed", got '
        f'{self.inflation} with tie="{self.tie}"'
      )
    for name, choices in _NEEDED.get(self.tie, {}).items():
      if getattr(self, name) not in choices:
        raise ValueError(
          f'{name} must be {" or ".join(choices)} with tie="{self.tie}", got '
          f"{getattr(self, name)!r}"
        )

  def detail_weights(self, progress: np.ndarray) -> np.ndarray:
    """Weight of the refined details at a progress by step, [K] to [K]."""
    return fusion.unlocked(
      self.unlock,
      self.haar_high,
      self.unlock_start,
      self.unlock_end,
      progress,
    )

  @property
  def held_levels(self) -> int:
    """How many levels stay at sigma_min."""
    # One level is left for the ramp: the chain must come down to sigma_min.
    return min(round(self.held * self.levels), self.levels - 1)

  @property
  def fuses(self) -> bool:
    """Whether any wavelet weight differs from 1: fusion does something."""
    # All laws are piecewise linear in progress: a fine grid sees any below 1.
    weights = self.detail_weights(np.linspace(0, 1, 101))
    return bool(self.haar_low != 1 or (weights != 1).any())

  @classmethod
  def paper(cls, **changes: Any) -> "NFCConfig":
    """As published (arXiv 2602.00176), its open choices as in DAPS.

    200 levels of five Euler steps (1000 network evaluations), 200 Langevin
    updates on the un-halved misfit with tau = 0.01, cutoff 0.4 to 1 by step,
    blend 0.35 to 0, one Haar level with w_L = 1, w_H = 0.2, unlocked 0.05 to
    1. tau, the step size and its decay are DAPS's: the paper states none.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.paper(levels=50)
      >>> config.levels, config.inner, config.blend_start
      (50, 'langevin', 0.35)
    """
    # What is not named here is the default, which is the paper's: 200 levels,
    # rho 7, sigma 100 to 0.1, 5 ODE steps, cutoff 0.4 to 1, 200 inner updates.
    published: dict[str, Any] = dict(
      predictor="euler",
      blend_start=0.35,
      inner="langevin",
      step_size=5e-5,
      step_size_decay=0.01,
      inner_noise_std=0.01,
      halved_misfit=False,
      tie="sigma",
      haar_high=0.2,
      unlock_start=0.05,
    )
    return cls(**(published | changes))

  @classmethod
  def restoration(cls, **changes: Any) -> "NFCConfig":
    """For a single best image, with little of a sample's noise, from one run.

    Each level takes the mean of its target instead of a draw, under twice the
    width of the denoiser's own Jacobian, and the last 60 % of the levels stay
    at noise 0.1, where the predicted images are averaged. The wider tie lets
    more of the measurement in, the denoiser takes out the noise that it brings.
    Both were chosen for PSNR on photographs, the numbers by
    `experiments.tune_samplers`, tie and averaging by hand on the same
    pictures. A Gaussian prior's width is right as it is: on those of
    `experiments.calibration` the result is off by up to 0.13 posterior standard
    deviations. width_factor=1 with averaged="refined" tends to the mean itself
    as passes and max_iterations grow.

    Three iterations per level, so at most four VJPs per denoiser call, each of
    about a call's time; 20 where fewer than 20 levels would not make up for
    what is left out. tie="spectrum" does without VJPs and needs the prior's
    spectrum; a width of Fourier space knows nothing of edges.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.restoration()
      >>> config.inner, config.tie, config.held_levels
      ('mean', 'jacobian', 120)
    """
    settings: dict[str, Any] = {
      "inner": "mean",
      "held": 0.6,
      "averaged": "predicted",
      "tie": "jacobian",
      "width_factor": 2.0,
    }
    if changes.get("tie", "jacobian") == "jacobian":
      # What three iterations leave out, later levels add: with few of them
      # there is no later.
      few = changes.get("levels", cls.levels) < 20
      settings |= {"tolerance": 1e-2, "max_iterations": 20 if few else 3}
    else:
      # FFTs are cheap beside the network, and a mean has no noise to hide in.
      settings |= {"tolerance": 1e-4}
    return cls(**(settings | changes))

  @classmethod
  def calibrated(cls, **changes: Any) -> "NFCConfig":
    """For posterior samples: right on a Gaussian prior at any level count.

    One denoiser call and one VJP per level; the denoiser's mean is the centre
    and the prior's own conditional variance the width of the tie, so that the
    inner draw is one from p(x0 | x_sigma, y) and every level's state one from
    p(x_sigma | y). The spectrum gives the width's shape, the VJP its size in
    every half octave, so a spectrum that is off by a factor does no harm;
    tie="spectrum" trusts it and saves the VJP. The band is open at every
    level: any blend > 0 tempers the likelihood and biases the levels at which
    it acts. Wavelet weights are 1.

    A network is not exact: on photographs it is overconfident along the way.
    `inflation` lets a misfit that is too large to be chance widen an image's
    width by up to a half. On measurements of the prior itself that moves the
    variance by about 1 %; with inflation=1 every level is exact.

    tie="jacobian" takes the width from the denoiser and needs no spectrum: at
    most 27 VJPs per level, solves to 1e-2 in at most 20 iterations, unless
    changed. Early levels may stop short of that; later ones correct it.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.calibrated(levels=30)
      >>> config.inner, config.tie, config.fuses
      ('exact', 'probed', False)
    """
    settings: dict[str, Any] = {"tie": "probed"}
    if changes.get("tie") == "jacobian":
      settings |= {"tolerance": 1e-2, "max_iterations": 20, "root_steps": 6}
    if changes.get("tie", "probed") in ("spectrum", "probed"):
      settings |= {"sigma_min": 0.02, "inflation": 1.5}
    return cls(**(settings | changes))
