"""Blurs whose kernel is not quite known: it is drawn with the picture.

A sampler goes from level to level with a kernel of a family, and after each one
the kernel is drawn anew from what the level's prediction c leaves to explain,

  p(k | y, c) ~ prod_f N(F (y - k * c); 0, |k_f|^2 C_f + s^2),

C_f the variance of the image about c at frequency f. The image itself is
integrated out: given an image that fits y by the last kernel, no other kernel
would ever do.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from posterior_jax import fields
from posterior_jax.base import Denoiser, Info, Observation, Sampler, State
from posterior_jax.denoising import predictor
from posterior_jax.linalg import fourier
from posterior_jax.operators.bordered import Blur
from posterior_jax.operators.function import as_pytree
from posterior_jax.operators.scene import Correlation

# Of a Hann window on both axes: (sum w^2)^2 / (n sum w^4), the share of the
# windowed frequencies that speaks for itself; neighbours repeat each other.
_INDEPENDENT = (18 / 35) ** 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernels:
  """A family of kernels; made by `turned`.

  Attributes:
    values: [T, k, k], k odd, each of sum 1.
    degrees: [T], how far each is turned.
    scales: [T], how far each is stretched.
  """

  values: jax.Array
  degrees: jax.Array
  scales: jax.Array


def turned(
  kernel: np.ndarray,
  *,
  degrees: float = 30.0,
  scale: float = 1.0,
  steps: int = 25,
  scales: int = 5,
) -> Kernels:
  """A kernel turned and stretched, on a grid; all equally likely before.

  Args:
    kernel: [k, k], k odd, of sum 1: what is believed.
    degrees: largest turn to either side, 0 to 90.
    scale: largest stretch, 1 to 2, also as a shrinkage of as much; 1: none.
    steps: turns between the two, odd; more than 1 where degrees > 0.
    scales: stretches, odd; more than 1 where scale > 1, else 1 is taken.

  Returns:
    The family; the kernel itself, interpolated once, is in its middle.

  Raises:
    ValueError: for a kernel that is not one, or values out of range.

  Example:
    >>> import numpy as np
    >>> from posterior_jax import uncertain
    >>> line = np.zeros((5, 5))
    >>> line[2] = 0.2
    >>> family = uncertain.turned(line, degrees=90, steps=3)
    >>> family.values.shape
    (3, 7, 7)
    >>> np.round(family.values[0, :, 3], 1)
    Array([0. , 0.2, 0.2, 0.2, 0.2, 0.2, 0. ], dtype=float32)
  """
  values = fields.array("kernel", kernel).astype(np.float64)
  square = values.ndim == 2 and values.shape[0] == values.shape[1]
  if not square or values.shape[0] % 2 == 0 or not values.sum() > 0:
    raise ValueError(
      f"kernel must be [k, k], k odd, and not 0; got shape {values.shape}"
    )
  if not 0 <= fields.real("degrees", degrees) <= 90:
    raise ValueError(f"degrees must lie in [0, 90], got {degrees}")
  if not 1 <= fields.real("scale", scale) <= 2:
    raise ValueError(f"scale must lie in [1, 2], got {scale}")
  for name, count in (("steps", steps), ("scales", scales)):
    if fields.whole(name, count) < 1 or count % 2 == 0:
      raise ValueError(f"{name} must be odd and positive, got {count}")
  # A grid of one is its lower end, and not the kernel itself.
  if degrees > 0 and steps == 1:
    raise ValueError(
      f"steps must be 3 or more where degrees is above 0, got 1 with {degrees}"
    )
  if scale > 1 and scales == 1:
    raise ValueError(
      f"scales must be 3 or more where scale is above 1, got 1 with {scale}"
    )
  angles = np.linspace(-degrees, degrees, steps)
  factors = scale ** np.linspace(-1, 1, scales if scale > 1 else 1)
  pairs = [(a, f) for f in factors for a in angles]
  # The smallest odd side that holds every corner of the support.
  centre = values.shape[0] // 2
  reach = np.abs(np.argwhere(values > 0) - centre)
  radius = int(np.ceil(np.sqrt((reach**2).sum(1)).max() * factors.max())) + 1
  found = np.stack([_turned(values, *pair, radius) for pair in pairs])
  degrees_of, scales_of = np.asarray(pairs).T
  return Kernels(
    *(jnp.asarray(a, jnp.float32) for a in (found, degrees_of, scales_of))
  )


def _turned(
  kernel: np.ndarray, degrees: float, scale: float, radius: int
) -> np.ndarray:
  """One of the family, [2 radius + 1] squared; anticlockwise in a picture."""
  angle = np.deg2rad(degrees)
  cos, sin = np.cos(angle), np.sin(angle)
  # From places of the new kernel to those of the old one.
  matrix = np.array([[cos, sin], [-sin, cos]]) / scale
  centre = np.array([kernel.shape[0] // 2] * 2)
  found = scipy.ndimage.affine_transform(
    kernel,
    matrix,
    centre - matrix @ np.array([radius, radius]),
    (2 * radius + 1,) * 2,
    order=1,
  )
  return found / found.sum()


class UncertainState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, 1, H, W, C], as of the sampler.
    level: likewise.
    inner: its states, one for every sample: leading axis [B].
    choice: [B], int32, the kernel of each sample.
  """

  x: jax.Array
  level: jax.Array
  inner: State
  choice: jax.Array


def uncertain(
  sampler: Sampler, family: Kernels, *, spectrum: jax.Array
) -> Sampler:
  """A sampler that draws the kernel of a blur with the picture.

  Args:
    sampler: any that takes blurs; it works on one sample at a time, and a
      denoiser call a step comes on top. What `recorded` keeps stays.
    family: the kernels; the observation's operator is a blur, of a border
      beyond the picture or not, whose kernel has their size.
    spectrum: the prior's, on the grid of the measurement, [h, w], > 0.

  Returns:
    The sampler, of one observation at a time: N = 1, since every photograph has
    a kernel of its own. `info.choice` of `run` is [K, B], the family's number
    of the kernel after every step.

  Raises:
    TypeError: if one of the two is not what it should be.
    ValueError: for a spectrum that is none; in a run, for several observations.
  """
  if not isinstance(sampler, Sampler) or not isinstance(family, Kernels):
    raise TypeError(
      f"sampler and family must be a Sampler and Kernels, got "
      f"{type(sampler).__name__} and {type(family).__name__}"
    )
  spectrum = jnp.asarray(spectrum, jnp.float32)
  fourier.check_spectrum(spectrum)
  known = _Known(
    as_pytree(sampler.init), as_pytree(sampler.step), family, spectrum
  )
  # Operands of a program, and no closures: equal ones do not compile again.
  init, step = (jax.tree_util.Partial(f, known) for f in (_init, _step))
  return Sampler(init, step, sampler.num_steps)


class _Known(NamedTuple):
  """What `uncertain` is given, as a pytree."""

  init: Callable[..., State]
  step: Callable[..., tuple[State, Info]]
  family: Kernels
  spectrum: jax.Array

  def by(self, observation: Observation, choice: jax.Array) -> Observation:
    """The observation by a kernel of the family."""
    operator = _blur_of(observation, self.family)
    operator = with_kernel(operator, self.family.values[choice])
    return dataclasses.replace(observation, operator=operator)


def _init(
  known: _Known, key: chex.PRNGKey, observation: Observation, batch: int
) -> UncertainState:
  _blur_of(observation, known.family)
  if len(observation.y) != 1:
    raise ValueError(
      f"y must hold one observation where its kernel is drawn, got N = "
      f"{len(observation.y)}; give each a run of its own"
    )
  key_choice, key_inner = jax.random.split(key)
  # Before anything is predicted: a flat image of the measurement's colour.
  shape = (1, *observation.operator.image_shape)
  flat = jnp.broadcast_to(
    jnp.mean(observation.y, axis=(-3, -2), keepdims=True), shape
  )
  likely = log_likelihood(observation, known.family, flat, known.spectrum)
  choice = jax.random.categorical(key_choice, likely, shape=(batch,))
  inner: Any = jax.vmap(
    lambda key, choice: known.init(key, known.by(observation, choice), 1)
  )(jax.random.split(key_inner, batch), choice)
  return UncertainState(inner.x[:, 0], inner.level[0], inner, choice)


def _step(
  known: _Known,
  state: UncertainState,
  denoise: Denoiser,
  observation: Observation,
  key: chex.PRNGKey,
) -> tuple[UncertainState, Info]:
  def one(inner: Any, choice: jax.Array, key: chex.PRNGKey) -> tuple:
    key_step, key_choice = jax.random.split(key)
    found, info = known.step(
      inner, denoise, known.by(observation, choice), key_step
    )
    sigma, spectrum = info.sigma, known.spectrum
    centre = predictor.clean(denoise, inner.x, sigma)[0]
    variance = spectrum * sigma**2 / (spectrum + sigma**2)
    likely = log_likelihood(observation, known.family, centre, variance)
    return found, info, jax.random.categorical(key_choice, likely)

  keys = jax.random.split(key, len(state.choice))
  inner, info, choice = jax.vmap(one)(state.inner, state.choice, keys)
  merged = Info(
    info.sigma[0],
    info.residual[:, 0],
    jax.tree.map(jnp.max, info.solve),
    None if info.band_energy is None else info.band_energy[:, 0],
    calls=jnp.max(info.calls) + 1,
    products=jnp.max(info.products),
    trajectory=None if info.trajectory is None else info.trajectory[:, 0],
    choice=choice,
  )
  following = UncertainState(inner.x[:, 0], inner.level[0], inner, choice)
  return following, merged


def log_likelihood(
  observation: Observation,
  family: Kernels,
  centre: jax.Array,
  variance: jax.Array,
) -> jax.Array:
  """log p(y | k, c) of every kernel, less a constant, [T].

  Of the mean over the channels, whose noise is less by as much; under a Hann
  window, since no picture is periodic. All N measurements have the one kernel.

  Args:
    observation: y [N, h, w, C] of a blur.
    family: the kernels.
    centre: c, [N, H, W, C].
    variance: C_f on the grid of the measurement, [h, w].
  """
  operator = _blur_of(observation, family)
  height, width, channels = operator.measurement_shape
  hann = np.hanning(height)[:, None] * np.hanning(width)  # [h, w]
  window = jnp.asarray(hann / np.sqrt((hann**2).mean()), jnp.float32)
  grey = _changed(operator, image_shape=(*operator.image_shape[:2], 1))
  y = jnp.mean(observation.y, axis=-1, keepdims=True)
  c = jnp.mean(centre, axis=-1, keepdims=True)
  noise = observation.noise_std**2 / channels

  def one(kernel: jax.Array) -> jax.Array:
    r = y - with_kernel(grey, kernel).forward(c)
    # The mean is the brightness of the window, of which a kernel says nothing.
    r = r[..., 0] * window
    power = jnp.abs(jnp.fft.fft2(r, norm="ortho")) ** 2  # [N, h, w]
    transfer = fourier.kernel_transfer(kernel, height, width)
    expected = jnp.abs(transfer) ** 2 * variance + noise
    terms = power / expected + jnp.log(expected)
    return -0.5 * _INDEPENDENT * jnp.sum(terms.at[..., 0, 0].set(0))

  return jax.lax.map(one, family.values)


def with_kernel(operator: Correlation, kernel: jax.Array) -> Correlation:
  """The blur with another kernel of the same size."""
  changes: dict[str, Any] = {"kernel": kernel}
  # What one kernel is a product of, its turns are not.
  if isinstance(operator, Blur):
    changes["separable"] = False
  return _changed(operator, **changes)


def _changed(operator: Any, **changes: Any) -> Correlation:
  """Of a dataclass, as every blur is."""
  found: Correlation = dataclasses.replace(operator, **changes)
  return found


def _blur_of(observation: Observation, family: Kernels) -> Correlation:
  operator = observation.operator
  if not isinstance(operator, Correlation):
    raise TypeError(f"operator must be a blur, got {type(operator).__name__}")
  if operator.kernel.shape != family.values.shape[1:]:
    raise ValueError(
      f"kernel of the operator must have the family's shape "
      f"{family.values.shape[1:]}, got {operator.kernel.shape}"
    )
  return operator
