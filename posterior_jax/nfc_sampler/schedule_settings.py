"""Where the noise levels lie, and what goes from one to the next: a record.

As those in `records`.
"""

import dataclasses
from typing import Literal

from posterior_jax import fields, schedule

_COUNT = (1, 1000)
_SHARE = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Where the noise levels lie, and which images are averaged.

  Attributes:
    sigma_max: first level.
    sigma_min: where the polynomial ramp would end; the node itself is replaced
      by 0 (`schedule.karras`). None: by the width (`NFCConfig.sigma_min`).
    rho: exponent of the ramp, and of an `Ode`'s.
    held: share of the levels, the last ones, that stay at sigma_min and whose
      images are averaged into the result, 0 to 0.99; 0: the ramp ends in 0.
      Above 0 it is one level at least and all but one at most; a single level
      is held where it starts from the measurement, and not from noise.
      Held levels are a Gibbs sampler of p(x0, x_sigma | y) at one noise, so
      that the average of their refined images goes to the posterior mean;
      where noise is kept none is drawn between them, so that more than one of
      a pass is refused unless `Denoise.turned` tells them apart.
    averaged: which images of held levels: "predicted", the denoiser's answer
      before it is moved towards the measurement, or "refined", after that, as
      it must be where held is 0.
    passes: how often all levels are gone through, 1 to 1000; each later pass
      starts from the last one's image under `renewal` of the noise of the first
      level, or all of it where noise is kept or filled in, and adds its held
      levels to one average. Under as much noise as published that image is all
      but hidden, so that passes are runs of their own; under less they go on
      from each other. 1 unless held.
    start: first state: "noise" at sigma_max alone, as published, or
      "measurement": what it shows of the image (`first_state.shown`), moved to
      it under the width, and under `renewal` of that noise, or all of it where
      `noise` is "filled"; where it is "kept", not moved, and under all of it.
      Few levels need no high noise then.
    noise: of the next level: "added" to a level's image, as published; "kept",
      the state's own beside that image, as in DDIM (`states.keeping`), with
      `Mean`: under the width `Jacobian`, whose mean is E[x0 | x, y], the run is
      the reverse process given y; or "filled" in before the image is moved to
      the measurement, which is noised as well, so that the noise that the
      measurement brings in counts: every direction has that of the next level
      in all (`states.filling`, the rule of DDNM+, arXiv 2212.00490). The width
      is then that of the next level (`Level.tied`), a `Sigma` of factor 2 at
      most, with `Mean`, no band and no fusion, the noise of the measurement as
      it is and that of the level.
    renewal: share, 0 to 1, of the next level's noise that is drawn anew: 1 as
      published. Where noise is kept, r of `states.keeping`, 0 to 10: 0 draws
      none, 1 is the ancestral step, and what is drawn between two noises does
      not depend on how many levels lie between. Where it is added there is no
      other: with 0 the run is plug-and-play restoration, whose levels are
      strengths of the denoiser, and the widths `Sigma` and `Spectrum` are those
      of the next level (`Level.tied`). Where it is filled in, sqrt(1 -
      renewal^2) of it is what the prediction took out, as in DDIM; where
      `Sigma.most` says what the measurement shows, of the rest alone.
    momentum: m, 0 to 5, of x0 + m log(sigma' / sigma) (x0 - x0'), which is
      moved to the measurement in the place of a level's prediction x0; x0' is
      that of the level before, at sigma'. Few levels come short of what each
      could move, and five levels of `fast` lose by any m above 1; 0 as
      published. A first level has none before it, so a single one is as it is
      without.
    relaxation: w, 0.1 to 10, of c + w (z - c), where z is what a level's inner
      method made of c: few levels, of solves that stop early, come short, and
      go further by a w above 1, which is as published. The last level, after
      which there is no noise, is made without it, and where averaged is refined
      the last one of every pass. Too large a w runs away on
      single pictures: at 10 levels of `guided` 1.5 changes four photographs by
      -1.4 to 0.7 dB on blurs and dropped pixels and 2.25 by -0.3 to -17 (a
      script on a CPU that is not in the package), though it is the best in a
      box.
  """

  sigma_max: float = 100.0
  sigma_min: float | None = 0.1
  rho: float = 7.0
  held: float = 0.0
  averaged: Literal["refined", "predicted"] = "refined"
  passes: int = 1
  start: Literal["noise", "measurement"] = "noise"
  noise: Literal["added", "kept", "filled"] = "added"
  renewal: float = 1.0
  momentum: float = 0.0
  relaxation: float = 1.0

  def __post_init__(self) -> None:
    ranges = {"passes": _COUNT, "held": (0.0, 0.99), "rho": (1e-3, 100.0)}
    ranges |= {"momentum": (0.0, 5.0), "relaxation": (0.1, 10.0)}
    renewal = (0.0, 10.0) if self.noise == "kept" else _SHARE
    fields.check(self, ranges | {"renewal": renewal})
    if self.averaged == "predicted" and self.held == 0:
      raise ValueError(
        "averaged must be refined where held is 0, which averages nothing, got "
        "predicted"
      )
    if self.sigma_min is None:
      return  # `NFCConfig` knows it
    schedule.check_ends(self.sigma_max, self.sigma_min)
