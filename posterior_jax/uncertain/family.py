"""A family of kernels: one that is believed, turned and stretched on a grid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from posterior_jax import fields
from posterior_jax.short_repr import short_repr


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

  __repr__ = short_repr


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
