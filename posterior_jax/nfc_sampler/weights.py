"""Settings of what is weighed: the residual's frequencies, images' wavelets.

Records as in `records`. The paper leaves several of these open; each reading is
an option, named where it stands.
"""

import dataclasses
from typing import Literal

from posterior_jax import fields
from posterior_jax.likelihood.bands import Blend, Shape
from posterior_jax.nfc_sampler.fusion import Unlock, Wavelet

_SHARE = (0.0, 1.0)
# A cutoff of 0 would be a division by it.
_CUTOFF = (1e-3, 1.0)


@dataclasses.dataclass(frozen=True)
class Exponential:
  """The paper's other law of the cutoff, by step (`schedule.saturating`).

  Attributes:
    rate: 5 in the paper's table.
  """

  rate: float = 5.0

  def __post_init__(self) -> None:
    fields.check(self, {"rate": (1e-3, 100.0)})


@dataclasses.dataclass(frozen=True)
class Radial:
  """A low-pass mask up to a cutoff that rises.

  Attributes:
    law: linear in the "step" or in "log_sigma" (the paper's law is linear and
      "coupled to the noise level", which may mean either), or `Exponential`.
    cutoff_start: first cutoff, fraction of the largest radius.
    cutoff_end: last cutoff.
    shape: of its edge: "hard", "butterworth" or "gaussian".
  """

  law: Literal["step", "log_sigma"] | Exponential = "step"
  cutoff_start: float = 0.4
  cutoff_end: float = 1.0
  shape: Shape = "hard"

  def __post_init__(self) -> None:
    fields.check(self, {"cutoff_start": _CUTOFF, "cutoff_end": _CUTOFF})


@dataclasses.dataclass(frozen=True)
class Snr:
  """The mask S / (S + sigma^2) (`bands.snr_band`), a reading of our own."""


@dataclasses.dataclass(frozen=True)
class Power:
  """A weight that falls as (1 - p)^exponent of the progress p by step.

  Attributes:
    exponent: 1 is a straight line.
  """

  exponent: float = 1.0

  def __post_init__(self) -> None:
    fields.check(self, {"exponent": (0.01, 100.0)})


@dataclasses.dataclass(frozen=True)
class Band:
  """Which frequencies of the residual speak, and how loud.

  Attributes:
    mask: M: `Radial`, or `Snr` by the prior's spectrum.
    power: p of the misfit's weight (1 - l) + l M^p: 2 if M filters the
      residual, 1 if it weighs the misfit itself; the same for a hard edge. The
      share S / (S + sigma^2) of `Snr` stands as it is with 1.
    blend: "convex" or "additive" (1 + l M^p) mixing.
    blend_start: weight l of the banded misfit at the first level.
    blend_end: at the last level, 0 as published. Where both are 1 and convex,
      the likelihood acts within the band only, as the paper's abstract says.
    law: how l goes from one to the other: by a "cosine", flat at both ends, as
      published, or by a `Power`.
  """

  mask: Radial | Snr = Radial()
  power: Literal[1, 2] = 2
  blend: Blend = "convex"
  blend_start: float = 0.35
  blend_end: float = 0.0
  law: Literal["cosine"] | Power = "cosine"

  def __post_init__(self) -> None:
    fields.check(self, {"blend_start": _SHARE, "blend_end": _SHARE})
    if not (self.blend_start or self.blend_end):
      raise ValueError(
        "blend_start or blend_end must be positive; no band is band=None"
      )


@dataclasses.dataclass(frozen=True)
class Fusion:
  """Wavelet weights of the refined image.

  Attributes:
    wavelet: "haar", "db2" or "bior4.4".
    levels: of the transform, 1 to 3.
    low: weight in the low-low band, w_L.
    high: weight in the details, w_H; one, or three for LH, HL and HH: (1.0,
      0.22 to 0.3, 0.18 to 0.22) in the authors' first draft, which adopts
      horizontal detail at once.
    unlock: how u, which rises linearly by step from unlock_start to unlock_end,
      sets that weight: "product" w_H u (w_H is where it ends), "clip"
      min(u, w_H), "base" w_H + (1 - w_H) u (w_H is where it starts), or
      "delay", w_H until the share unlock_start of the steps is done and then
      linearly to 1 at unlock_end, which is no earlier (`fusion.unlocked`).
    unlock_start: u at the first level.
    unlock_end: u at the last level.
  """

  wavelet: Wavelet = "haar"
  levels: int = 1
  low: float = 1.0
  high: float | tuple[float, float, float] = 0.2
  unlock: Unlock = "product"
  unlock_start: float = 0.05
  unlock_end: float = 1.0

  def __post_init__(self) -> None:
    shares = ("low", "high", "unlock_start", "unlock_end")
    fields.check(self, {"levels": (1, 3)} | dict.fromkeys(shares, _SHARE))
    if self.unlock == "delay" and self.unlock_end < self.unlock_start:
      raise ValueError(
        'unlock_end must be at least unlock_start with unlock "delay", got '
        f"{self.unlock_end} with unlock_start {self.unlock_start}"
      )
