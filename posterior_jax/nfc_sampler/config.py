"""The settings of noise-frequency continuation, and what follows from them."""

import dataclasses

import numpy as np

from posterior_jax import fields
from posterior_jax.nfc_sampler import combinations
from posterior_jax.nfc_sampler import fusion as wavelets
from posterior_jax.nfc_sampler.combinations import Stop
from posterior_jax.nfc_sampler.records import (
  Denoise,
  Exact,
  Inner,
  Predictor,
  Spectrum,
  Width,
)
from posterior_jax.nfc_sampler.schedule_settings import Schedule
from posterior_jax.nfc_sampler.tuned import Tuned
from posterior_jax.nfc_sampler.weights import Band, Fusion, Snr


@dataclasses.dataclass(frozen=True)
class NFCConfig(Tuned):
  """Settings of `nfc`, a record per part; pixels of [-1, 1] throughout.

  Attributes:
    levels: noise levels of a pass, 1 to 10000.
    schedule: where they lie, and which images are averaged.
    predictor: `Denoise`, one call per level, or an `Ode`.
    width: of the tie to the prediction: `Sigma`, `Spectrum`, `Probed` or
      `Jacobian`.
    inner: how the tied likelihood moves the prediction: `Exact`, `Mean`,
      `Langevin` or `Gradient`.
    band: of the likelihood; None: every frequency speaks at every level.
    fusion: with the prediction by wavelets; None: the moved image as it is.
    inner_noise_std: tau, the noise that the likelihood assumes; None is the
      observation's.
    halved_misfit: whether the likelihood is exp(-|r|^2 / (2 tau^2)); False
      leaves out the 2, as the code of DAPS does.
    linearisations: how often `Exact` and `Mean` linearise a nonlinear
      measurement at a level, 1 to 100 (Gauss-Newton): at the prediction, then
      at the image that it was moved to; None: 3. `Langevin` and `Gradient` have
      none: they go through a level once, by the measurement itself and its
      tangent at every update.

  Raises:
    ValueError: for a value out of range, by name, or parts that do not go
      together.

  Example:
    >>> import posterior_jax as pj
    >>> from posterior_jax.nfc_sampler import Mean, Schedule
    >>> pj.NFCConfig(levels=20, schedule=Schedule(held=0.5)).held_levels
    10
    >>> pj.NFCConfig(inner=Mean()).stop
    Stop(tolerance=0.0001, max_iterations=500)
    >>> pj.NFCConfig(levels=0)
    Traceback (most recent call last):
    ValueError: levels must lie in [1, 10000], got 0
  """

  levels: int = 200
  schedule: Schedule = dataclasses.field(default_factory=Schedule)
  predictor: Predictor = dataclasses.field(default_factory=Denoise)
  width: Width = dataclasses.field(default_factory=Spectrum)
  inner: Inner = dataclasses.field(default_factory=Exact)
  band: Band | None = None
  fusion: Fusion | None = None
  inner_noise_std: float | None = None
  halved_misfit: bool = True
  linearisations: int | None = None

  def __post_init__(self) -> None:
    fields.check(self, {"levels": (1, 10_000), "linearisations": (1, 100)})
    combinations.check(self.width, self.predictor, self.inner)
    combinations.check_levels(
      self.schedule, self.levels, self.held_levels, self.sigma_min
    )
    combinations.check_end(self.predictor, self.first_sigma)
    combinations.check_linearisations(self.inner, self.linearisations)
    combinations.check_kept(
      self.schedule, self.inner, self.predictor, self.held_levels
    )
    combinations.check_filled(
      self.schedule,
      self.width,
      self.inner,
      self.predictor,
      band=self.band,
      fusion=self.fusion,
      inner_noise_std=self.inner_noise_std,
      halved_misfit=self.halved_misfit,
      linearisations=self.linearisations,
    )

  @property
  def stop(self) -> Stop:
    """Where the linear solves of `Exact` and `Mean` stop.

    What a record leaves open follows width, inner method and levels, however
    those were set.
    """
    return combinations.stop_of(self.width, self.inner, self.levels)

  @property
  def sigma_min(self) -> float:
    """Noise at which the ramp ends and levels are held.

    The schedule's; one that it leaves open follows the width, however that was
    set: 0.02 with `Spectrum` and `Probed`, 0.1 with others.
    """
    return combinations.sigma_min_of(self.schedule, self.width)

  @property
  def first_sigma(self) -> float:
    """Noise of the first level."""
    all_held = self.held_levels == self.levels
    return self.sigma_min if all_held else self.schedule.sigma_max

  def detail_weights(self, progress: np.ndarray) -> np.ndarray:
    """Weight of the refined details by step, [K] to [K] or [K, 3]."""
    if self.fusion is None:
      return np.ones_like(progress)
    return wavelets.unlocked(
      self.fusion.unlock,
      self.fusion.high,
      self.fusion.unlock_start,
      self.fusion.unlock_end,
      progress,
    )

  @property
  def held_levels(self) -> int:
    """How many levels stay at sigma_min."""
    if self.schedule.held == 0:
      return 0
    # One level is left for the ramp: the chain must come down to sigma_min. A
    # single one that starts from the measurement begins there.
    if self.levels == 1:
      return int(self.schedule.start == "measurement")
    wanted = max(round(self.schedule.held * self.levels), 1)
    return min(wanted, self.levels - 1)

  @property
  def fuses(self) -> bool:
    """Whether any wavelet weight differs from 1: fusion does something."""
    if self.fusion is None:
      return False
    # All laws are piecewise linear in progress: a fine grid sees any below 1.
    weights = self.detail_weights(np.linspace(0, 1, 101))
    return bool(self.fusion.low != 1 or (weights != 1).any())

  @property
  def reads_spectrum(self) -> bool:
    """Whether a part reads the prior's power spectrum."""
    by_band = self.band is not None and isinstance(self.band.mask, Snr)
    by_start = self.schedule.start == "measurement"
    return by_band or by_start or isinstance(self.width, Spectrum)
