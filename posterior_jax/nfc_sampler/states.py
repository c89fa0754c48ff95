"""The states between levels: where a run starts, and how it is renoised."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Observation, Operator
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.records import (
  Sigma,
  Spectrum,
  Width,
)
from posterior_jax.nfc_sampler.schedule_settings import Schedule

# Misfits further off, in units of the noise, say that something else is wrong
# than the noise that was taken out.
_BELIEVED = 0.5, 4.0


def noise(
  key: chex.PRNGKey,
  observation: Observation,
  shape: tuple[int, ...],
  level: Level,
) -> jax.Array:
  """sigma n, which knows nothing of the measurement."""
  del observation
  return level.sigma * jax.random.normal(key, shape, jnp.float32)


def shown(
  observation: Observation, spectrum: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """What the measurement shows of an image, of a shape [..., N, H, W, C].

  The measurement itself where it has the pixel, enlarged where several pixels
  of the image share one of it; its edge goes on where the image is a scene
  larger than its picture. Dropped pixels and what is measured in another unit
  than pixels come from the minimiser of

    |y - A z|^2 / s^2 + z^T S^-1 z

  which takes an image to be periodic. That shows at the borders of a blurred
  one, and takes hundreds of iterations where a margin is hidden, so it stands
  only where nothing else does.
  """
  y, operator = observation.y, observation.operator
  image, measured = operator.image_shape, operator.measurement_shape
  border = _border(operator)
  inside = (
    *(n - sum(sides) for n, sides in zip(image[:2], border, strict=True)),
    image[2],
  )
  scene = inside != image and inside == measured
  if operator.pictorial and (scene or _shares(inside, measured)):
    enlarged = jax.image.resize(y, (len(y), *inside), "cubic")
    wide = jnp.pad(enlarged, ((0, 0), *border, (0, 0)), mode="edge")
    return jnp.broadcast_to(wide, shape)
  nothing = jnp.zeros(shape, jnp.float32)
  target = gaussian.Target(observation, nothing, spectrum)
  likely, _ = gaussian.mean(target, tolerance=1e-4, max_iterations=500)
  if not operator.pictorial or measured != image:
    return likely
  return operator.observed * y + (1 - operator.observed) * likely


def _border(operator: Operator) -> tuple[tuple[int, int], tuple[int, int]]:
  """Pixels of the image (above, below), (left, right) of the picture."""
  height, width, _ = operator.image_shape
  # Known where a program is traced, whatever `interior` is written in.
  with jax.ensure_compile_time_eval():
    places = jnp.stack(jnp.mgrid[:height, :width], axis=-1)  # [H, W, 2]
    inside = np.asarray(operator.interior(places))
  (top, left), (bottom, right) = inside[0, 0], inside[-1, -1]
  return (int(top), int(height - 1 - bottom)), (
    int(left),
    int(width - 1 - right),
  )


def _shares(image: tuple[int, ...], measured: tuple[int, ...]) -> bool:
  """Whether squares of the image's pixels share one of the measurement."""
  whole = image[0] % measured[0] == image[1] % measured[1] == 0
  return whole and image[:2] != measured[:2] and image[2] == measured[2]


def starting(
  schedule: Schedule, width: Width, spectrum: jax.Array | None
) -> Callable[..., jax.Array]:
  """The part that makes the first state.

  Args:
    schedule: says where a run starts.
    width: by which the shown image is moved to the measurement, at the noise of
      the first level: sigma^2 or, of `Spectrum`, S sigma^2 / (S + sigma^2),
      times its factor.
    spectrum: S.
  """

  def measured(
    key: chex.PRNGKey,
    observation: Observation,
    shape: tuple[int, ...],
    level: Level,
  ) -> jax.Array:
    assert spectrum is not None  # `checks.spectrum_of` refused that
    variance = width.factor * level.sigma**2
    if isinstance(width, Sigma) and width.most is not None:
      variance = jnp.minimum(variance, width.most**2)
    if isinstance(width, Spectrum):
      variance = variance * spectrum / (spectrum + level.sigma**2)
    image = shown(observation, spectrum, shape)
    if schedule.noise == "kept":
      # To the measurement goes the first prediction, and what is kept from
      # level to level must be there from the start.
      return image + noise(key, observation, shape, level)
    filled = schedule.noise == "filled"
    if filled:
      assert isinstance(width, Sigma)  # `NFCConfig` refuses another width
      first = level._replace(following=level.sigma)
      part = filling(1.0, width, {})  # all anew, so that nothing is solved
      observation, image = part(key, observation, image, image, image, first)
    target = gaussian.Target(observation, image, variance)
    # Few levels have no time to put right what a loose solve leaves.
    moved, _ = gaussian.mean(target, tolerance=1e-4, max_iterations=500)
    if filled:
      return moved
    return moved + schedule.renewal * noise(key, observation, shape, level)

  return measured if schedule.start == "measurement" else noise


def heeding(
  level: Level, misfit: jax.Array, *, discrepancy: jax.Array | float
) -> Level:
  """The level whose sigma, [..., N, 1, 1, 1], is less where r is above 1.

  Args:
    level: as it is for all images.
    misfit: r of every image's last prediction, [..., N].
    discrepancy: q of sigma r^-q.
  """
  return level._replace(sigma=heeded(level.sigma, misfit, discrepancy))


def heeded(
  sigma: jax.Array, misfit: jax.Array, discrepancy: jax.Array | float
) -> jax.Array:
  """sigma r^-q of every image, [..., N, 1, 1, 1]; as for `heeding`."""
  ratio = jnp.clip(misfit, *_BELIEVED)[..., None, None, None]
  return sigma * ratio**-discrepancy


def leading(x0: jax.Array, before: jax.Array, level: Level) -> jax.Array:
  """x0 + pace (x0 - before): ahead of x0 by its last move times the pace."""
  return x0 + level.pace * (x0 - before)


def renoise(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
  """image + sigma' n: the state forgets how the image came about, as in DAPS.

  Noise that a DDIM step would keep is correlated with the error of the last
  prediction; fresh noise gives early mistakes no way to survive.
  """
  noise = jax.random.normal(key, image.shape, image.dtype)
  return image + level.following * noise


def keeping(renewal: jax.Array | float) -> Callable[..., jax.Array]:
  """The part that goes on with the state's own noise.

    x' = z + sigma' (k (x - z) / sigma + sqrt(1 - k^2) n),
    k = (sigma' / sigma)^(r^2)

  with z the level's image. Where that is E[x0 | x, y], this is a step of the
  reverse process given y: at r = 0 of the probability flow, at r = 1 the
  ancestral one, as DDIM has both (Song et al. 2021, eq. 12; its eta is r where
  neighbouring levels are close), and above 1 with a part of Langevin dynamics
  at every level. How much is drawn anew on the way from one noise to another
  does not depend on the number of levels between them.

  Args:
    renewal: r, >= 0.
  """

  def part(
    key: chex.PRNGKey, x: jax.Array, image: jax.Array, level: Level
  ) -> jax.Array:
    # The next pass begins anew, at more noise than there is to keep.
    falls = level.following <= level.sigma
    ratio = level.following / level.sigma
    kept = jnp.where(falls, ratio**renewal**2, 0.0)
    noise = jax.random.normal(key, image.shape, image.dtype)
    mixed = kept * (x - image) / level.sigma + (1 - kept**2) ** 0.5 * noise
    return image + level.following * mixed

  return part


def filling(
  renewal: jax.Array | float, width: Sigma, stop: Mapping[str, Any]
) -> Callable[..., tuple[Observation, jax.Array]]:
  """The part that noises an image and the measurement that it is moved to.

    f  = sigma' (sqrt(1 - r^2) m + r n3),  m = (x - x0) / sigma
    z' = z + f,  y' = y + sqrt(2 sigma'^2 / C - 1) s n1 + sigma' A n2

  under the width C <= 2 sigma'^2. In a singular direction of A, of value t, the
  move takes w = t^2 / (t^2 + s^2 / C) of y' and 1 - w of z'. So y and n1 have
  the variance 2 w (1 - w) sigma'^2 together, n2 w^2 sigma'^2 and f (1 - w)^2
  sigma'^2: sigma'^2 in all, of which the measurement's own noise is a part.
  `baselines.ddnm` does so where an operator has no decomposition.

  That takes the noises to be independent, but m has a part of y's, level after
  level. Where the width has a largest value, `most`, m is drawn anew in the
  directions that the measurement shows then, t >> c = s / most:

    m' = m + (A^T A + c^2)^-1 A^T (A (n4 - m) + sqrt(2) c n5)

  which keeps c^2 / (t^2 + c^2) of m and is white again.

  Args:
    renewal: r, in [0, 1].
    width: its factor, in (0, 2], and largest value. A traced factor above 2 is
      not refused: directions that A shows have more noise than sigma' then.
    stop: tolerance and max_iterations of the solve for m'.
  """

  def part(
    key: chex.PRNGKey,
    observation: Observation,
    x: jax.Array,
    x0: jax.Array,
    image: jax.Array,
    level: Level,
  ) -> tuple[Observation, jax.Array]:
    operator = observation.operator
    keys = jax.random.split(key, 3)
    within, fresh = (jax.random.normal(k, x.shape, x.dtype) for k in keys[1:])
    kept = (x - x0) / level.sigma
    if width.most is not None and not _whole(renewal):
      kept = _unseen(keys[0], observation, kept, width.most, stop)
    # The next pass begins anew, as in `keeping`. Of two plain numbers x64 would
    # make float64.
    anew = jnp.asarray(renewal, x.dtype)
    anew = jnp.where(level.following > level.sigma, 1.0, anew)
    free = level.following * ((1 - anew**2) ** 0.5 * kept + anew * fresh)
    data = observation.y + operator.forward(level.following * within)
    share: jax.Array | float = 2 / width.factor
    if width.most is not None:
      share = jnp.maximum(share, 2 * (level.following / width.most) ** 2)
    # A traced factor above 2, which nobody can refuse, brings in more noise
    # than the level has: n1 is 0 then. The last level has no noise.
    share = jnp.maximum(share - 1, 0.0) ** 0.5
    beside = jnp.where(level.following > 0, share, 0.0)
    beside = beside * jnp.asarray(observation.noise_std, x.dtype)
    data += beside * jax.random.normal(keys[0], data.shape, data.dtype)
    return Observation(data, operator, observation.noise_std), image + free

  return part


def _unseen(
  key: chex.PRNGKey,
  observation: Observation,
  noise: jax.Array,
  most: jax.Array | float,
  stop: Mapping[str, Any],
) -> jax.Array:
  """White noise, drawn anew where A is above noise_std / most."""
  operator = observation.operator
  c = jnp.asarray(observation.noise_std / most, noise.dtype)
  # keys[0] of the caller also draws n1.
  keys = jax.random.split(jax.random.fold_in(key, 1))
  fresh = jax.random.normal(keys[0], noise.shape, noise.dtype)
  data = operator.forward(fresh - noise)
  data += 2**0.5 * c * jax.random.normal(keys[1], data.shape, data.dtype)
  shift, _ = operator.normal_solve(
    operator.adjoint(data),
    precision=c**2,
    noise_std=jnp.ones((), noise.dtype),
    **stop,
  )
  return noise + shift


def renoising(renewal: float) -> Callable[..., jax.Array]:
  """`renoise` with a share of the noise."""

  def part(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
    following = level._replace(following=renewal * level.following)
    return renoise(key, image, following)

  # A factor of 1 would be one more rounding of every state.
  return renoise if _whole(renewal) else part


def _whole(renewal: jax.Array | float) -> bool:
  # One that is traced is known only when it runs.
  return not isinstance(renewal, jax.core.Tracer) and bool(renewal == 1)
