"""What a measurement says of the kernel of its blur, the image integrated out.

  p(k | y, c) ~ prod_f N(F (y - k * c); 0, |k_f|^2 C_f + s^2),

C_f the variance of the image about c at frequency f.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Observation
from posterior_jax.linalg import fourier
from posterior_jax.operators.bordered import Blur
from posterior_jax.operators.scene import Correlation
from posterior_jax.uncertain.family import Kernels

# Of a Hann window on both axes: (sum w^2)^2 / (n sum w^4), the share of the
# windowed frequencies that speaks for itself; neighbours repeat each other.
_INDEPENDENT = (18 / 35) ** 2


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
  operator = blur_of(observation, family)
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


def blur_of(observation: Observation, family: Kernels) -> Correlation:
  """The operator; TypeError or ValueError unless a kernel of the family fits.

  Args:
    observation: of a blur, if all is well.
    family: the kernels.
  """
  operator = observation.operator
  if not isinstance(operator, Correlation):
    raise TypeError(f"operator must be a blur, got {type(operator).__name__}")
  if operator.kernel.shape != family.values.shape[1:]:
    raise ValueError(
      f"kernel of the operator must have the family's shape "
      f"{family.values.shape[1:]}, got {operator.kernel.shape}"
    )
  return operator
