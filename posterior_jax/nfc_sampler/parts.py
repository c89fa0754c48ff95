"""What a level is composed of: the signatures of its parts.

A level is predict, width, band, likelihood, fuse, renoise; `sampler.compose`
calls them. Each part is a pure function with the signature that `Parts` gives,
so one of a user's own takes the place of any (`parts._replace(band=...)`,
example at `sampler.compose`). `from_config` chooses them from the settings.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax

from posterior_jax.base import (
  Denoiser,
  Linear,
  Observation,
  Operator,
  SolveInfo,
)
from posterior_jax.nfc_sampler.levels import Level

# Keys, as many as the part that takes them asks for.
Probes = Sequence[chex.PRNGKey]


class Prediction(NamedTuple):
  """What a level's predictor says of the clean image.

  Attributes:
    x0: [B, N, H, W, C].
    calls: of the denoiser that it took.
    covariance: v -> C v by the denoiser's Jacobian (`predictor.linearise`), one
      VJP each; None where the predictor does not differentiate.
  """

  x0: jax.Array
  calls: int
  covariance: Linear | None = None


class Width(NamedTuple):
  """The covariance C of the tie, in one of two forms.

  Attributes:
    diagonal: of C in Fourier space, [], [H, W] or [..., H, W, C] with leading
      axes that broadcast against [B, N]; None where C is no such diagonal.
    product: v -> C v instead.
    guess: such a diagonal that C is about, beside `product`, or None.
    products: with the denoiser's Jacobian that it took to find C.
  """

  diagonal: jax.Array | None = None
  product: Linear | None = None
  products: int = 0
  guess: jax.Array | None = None


class Refined(NamedTuple):
  """What the likelihood made of a prediction.

  Attributes:
    z: [B, N, H, W, C].
    solve: how its linear solve went.
    products: with the denoiser's Jacobian that it took.
  """

  z: jax.Array
  solve: SolveInfo
  products: jax.Array | int = 0


class Parts(NamedTuple):
  """The functions that a level composes; images are [B, N, H, W, C].

  Attributes:
    start: (key, observation, shape, level) -> x of that shape at the noise of
      the first level.
    assume: (observation) -> Observation with the noise that the likelihood
      assumes.
    predict: (denoise, x, level) -> Prediction of the clean image.
    width: (probes, observation, prediction, level) -> Width of the tie;
      `probes` are as many keys as the field of that name says.
    band: (observation, level) -> Observation of which only the level's band
      speaks.
    likelihood: (key, observation, x0, width, level) -> Refined, the prediction
      moved by the banded measurement.
    fuse: (x0, z, level) -> the image that adopts coarse corrections fully and
      fine ones late.
    hold: (average, x0, fused, level) -> (image, average): the level's image,
      and the running average of held levels, None where `averages` is False.
    renoise: (key, image, level) -> x at the noise of the next level.
    keep: (key, x, image, level) -> x at the noise of the next level, in the
      place of `renoise`, from the state x as well; None: `renoise`.
    fill: (key, observation, x, x0, image, level) -> (observation, image), both
      under the noise of the next level, so that the likelihood moves one to the
      other and no `renoise` follows; x is the state, x0 its prediction, which
      image is but for `lead`. None: the image is noised when it was moved.
    check: (operator) -> None, raising ValueError where its images or its
      measurements do not fit; called before anything is compiled.
    probes: how many keys `width` takes.
    averages: whether `hold` keeps an average.
    heed: (level, misfit) -> the level for `predict`, given the normalised
      residual of the last prediction, [B, N]; None: the level as it is.
    lead: (x0, before, level) -> the image that is moved to the measurement in
      the place of the prediction x0, given the last level's; None: x0 itself.
    linearisations: of a nonlinear measurement at every level; 0: `likelihood`
      takes it as it is.
  """

  start: Callable[
    [chex.PRNGKey, Observation, tuple[int, ...], Level], jax.Array
  ]
  assume: Callable[[Observation], Observation]
  predict: Callable[[Denoiser, jax.Array, Level], Prediction]
  width: Callable[[Probes, Observation, Prediction, Level], Width]
  band: Callable[[Observation, Level], Observation]
  likelihood: Callable[
    [chex.PRNGKey, Observation, jax.Array, Width, Level], Refined
  ]
  fuse: Callable[[jax.Array, jax.Array, Level], jax.Array]
  hold: Callable[
    [jax.Array | None, jax.Array, jax.Array, Level],
    tuple[jax.Array, jax.Array | None],
  ]
  renoise: Callable[[chex.PRNGKey, jax.Array, Level], jax.Array]
  check: Callable[[Operator], None]
  probes: int = 0
  averages: bool = False
  keep: (
    Callable[[chex.PRNGKey, jax.Array, jax.Array, Level], jax.Array] | None
  ) = None
  fill: (
    Callable[
      [chex.PRNGKey, Observation, jax.Array, jax.Array, jax.Array, Level],
      tuple[Observation, jax.Array],
    ]
    | None
  ) = None
  heed: Callable[[Level, jax.Array], Level] | None = None
  lead: Callable[[jax.Array, jax.Array, Level], jax.Array] | None = None
  linearisations: int = 1
