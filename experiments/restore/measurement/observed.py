"""A picture as an observation: what was measured, by what, with what noise."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.restore.measurement.degradation import Shape
from experiments.restore.picture_files.picture_file import MOST_SIDE
from posterior_jax import Observation, Operator
from posterior_jax.operators import SceneBlur

LEAST = 32  # pixels of a side of what is restored


class Given(NamedTuple):
  """A picture to restore."""

  # the clean picture [1, H, W, C], None where there is none
  truth: jax.Array | None
  observation: Observation  # of the picture as it is, C 1 (grey) or 3

  @property
  def grey(self) -> bool:
    """Whether the picture has no colour."""
    return self.observation.operator.image_shape[2] == 1

  def coloured(self) -> Observation:
    """The observation for a prior of colour images.

    A grey one is repeated in three channels under sqrt(3) times the noise: the
    mean of the three then has the likelihood of the grey picture.
    """
    if not self.grey:
      return self.observation
    shape = (*self.observation.operator.image_shape[:2], 3)
    return Observation(
      jnp.repeat(self.observation.y, 3, axis=-1),
      _of_shape(self.observation.operator, shape),
      3**0.5 * self.observation.noise_std,
    )

  def on_fast_sides(self) -> "Given":
    """The same, the scene of a blur of sides whose FFTs are fast."""
    operator = self.observation.operator
    if not isinstance(operator, SceneBlur):
      return self
    operator = operator.on_fast_sides()
    observation = dataclasses.replace(self.observation, operator=operator)
    return self._replace(observation=observation)


def observe(
  picture: np.ndarray,
  build: Callable[[Shape], Operator],
  *,
  enlarge: int,
  noise_std: float,
  degrade: bool,
  seed: int,
  margin: int = 0,
) -> Given:
  """The picture as an observation.

  Args:
    picture: [H, W, C] in [-1, 1].
    build: the operator on images of a shape.
    enlarge: how many times larger the restored picture is.
    noise_std: of the measurement, pixels in [-1, 1].
    degrade: whether the picture is clean, and to be degraded first.
    seed: of the noise then.
    margin: of the scene around the restored picture.

  Returns:
    The observation; with the truth where the picture is clean, which is then
    the scene: cut at its right and lower border until `enlarge` divides its
    sides, and less the margin.

  Raises:
    ValueError: a side of the restored picture is out of range.
  """
  height, width, channels = picture.shape
  if degrade:
    height, width = (
      (n - 2 * margin) // enlarge * enlarge for n in (height, width)
    )
  else:
    height, width = height * enlarge, width * enlarge
  if margin > max(height, width):
    raise ValueError(
      f"the blur must reach no further than the picture's {width} x {height} "
      f"pixels, it reaches {margin} to every side"
    )
  operator = build((height + 2 * margin, width + 2 * margin, channels))
  height, width = (n - 2 * margin for n in operator.image_shape[:2])
  if not (LEAST <= min(height, width) and max(height, width) <= MOST_SIDE):
    raise ValueError(
      f"image must be {LEAST} to {MOST_SIDE} pixels a side once restored, this "
      f"is {width} x {height}"
    )
  if not degrade:
    y = jnp.asarray(picture[None], jnp.float32)
    return Given(None, Observation(y, operator, noise_std))
  height, width, _ = operator.image_shape
  scene = jnp.asarray(picture[None, :height, :width], jnp.float32)
  clean = operator.forward(scene)
  noise = jax.random.normal(jax.random.key(seed), clean.shape)
  observation = Observation(clean + noise_std * noise, operator, noise_std)
  return Given(operator.interior(scene), observation)


def _of_shape(operator: Operator, shape: Shape) -> Operator:
  """The same operator on images of another number of channels."""
  assert dataclasses.is_dataclass(operator)
  return dataclasses.replace(operator, image_shape=shape)
