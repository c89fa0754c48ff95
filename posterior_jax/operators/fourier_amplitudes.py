"""Phase retrieval: amplitudes of a Fourier transform, whose phases are lost."""

import dataclasses

import jax
import jax.numpy as jnp

from posterior_jax import fields
from posterior_jax.operators.shapes import check_image_shape
from posterior_jax.operators.smooth_function import Nonlinear, untried

# The field's is 2; of this a padded image has 289 times the pixels.
_LARGEST_OVERSAMPLING = 64.0


def phase_retrieval(
  image_shape: tuple[int, int, int], *, oversampling: float = 2.0
) -> Nonlinear:
  """Amplitudes of the Fourier transform of a padded image, phases lost.

    y = |F P (x + 1) / 2|, F orthonormal, P zeros around the image

  as in the code of DPS and DAPS: an image and its turn by 180 degrees have the
  same amplitudes, so that the field reports the best of four restarts.

  Args:
    image_shape: (H, W, C).
    oversampling: o, the padding at every side is int(o / 8 * max(H, W)) as
      there, in (0, 64].

  Raises:
    ValueError: if oversampling is out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.phase_retrieval((64, 64, 3))
    >>> operator.forward(jnp.zeros((1, 64, 64, 3))).shape
    (1, 96, 96, 3)
  """
  image_shape = check_image_shape(image_shape)
  if fields.positive("oversampling", oversampling) > _LARGEST_OVERSAMPLING:
    raise ValueError(
      f"oversampling must be at most {_LARGEST_OVERSAMPLING:g}, got "
      f"{oversampling}"
    )
  margin = int(oversampling / 8 * max(image_shape[:2]))
  return untried(_Amplitudes(margin), image_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Amplitudes:
  """A value, so that equal ones do not compile again."""

  margin: int = dataclasses.field(metadata={"static": True})

  def __call__(self, x: jax.Array) -> jax.Array:
    border = ((self.margin, self.margin),) * 2 + ((0, 0),)
    padded = jnp.pad(0.5 * x + 0.5, border)
    found = jnp.fft.fft2(padded, axes=(0, 1), norm="ortho")
    # Not abs, whose derivative is NaN at 0; far below any noise.
    return jnp.sqrt(found.real**2 + found.imag**2 + 1e-12)
