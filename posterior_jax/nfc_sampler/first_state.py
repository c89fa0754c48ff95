"""Where a run starts: at noise alone, or at what the measurement shows."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Observation, Operator
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler import states
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.records import Sigma, Spectrum, Width
from posterior_jax.nfc_sampler.schedule_settings import Schedule


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
      # All anew, so that nothing is solved.
      part = states.filling(1.0, width, {})
      observation, image = part(key, observation, image, image, image, first)
    target = gaussian.Target(observation, image, variance)
    # Few levels have no time to put right what a loose solve leaves.
    moved, _ = gaussian.mean(target, tolerance=1e-4, max_iterations=500)
    if filled:
      return moved
    return moved + schedule.renewal * noise(key, observation, shape, level)

  return measured if schedule.start == "measurement" else noise
