"""Blurs by their kernel: one's own, a Gaussian, a motion's.

`bordered` has those with mirrored and circular borders, `scene` the one whose
scene goes on beyond the picture.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from posterior_jax import fields
from posterior_jax.operators import frozen
from posterior_jax.operators.bordered import Blur
from posterior_jax.operators.scene import Correlation, SceneBlur
from posterior_jax.operators.shapes import check_image_shape

Boundary = Literal["reflect", "circular", "valid"]


def blur(
  image_shape: tuple[int, int, int],
  kernel: np.ndarray | jax.Array,
  *,
  boundary: Boundary = "reflect",
  seen: tuple[int, int] | None = None,
) -> Correlation:
  """Blur with a kernel of one's own.

  Args:
    image_shape: (H, W, C); for "valid" that of the scene, at least k // 2
      larger than the picture at every side (`SceneBlur.on_fast_sides`).
    kernel: [k, k], k odd, non-negative, sum 1 within 1e-3.
    boundary: "reflect" mirrors, "circular" wraps around, and "valid" assumes
      nothing: the scene goes on beyond the picture, as it does for a camera.
    seen: for "valid" (h, w), sides of the picture in the middle of the scene;
      None: the scene less k // 2 at every side.

  Kernels that differ in whether they are separable compile anew.

  Raises:
    ValueError: for a kernel that is not such, one too wide for the mirror, a
      picture that does not fit into the scene, or an unknown boundary.

  Example:
    >>> import numpy as np
    >>> import posterior_jax as pj
    >>> operator = pj.operators.blur((8, 8, 3), np.full((3, 3), 1 / 9))
    >>> operator.separable  # a box is a column times a row
    True
  """
  image_shape = check_image_shape(image_shape)
  values = fields.array("kernel", kernel).astype(np.float64)
  square = values.ndim == 2 and values.shape[0] == values.shape[1]
  if not square or values.shape[0] % 2 == 0:
    raise ValueError(
      f"kernel must have shape [k, k] with k odd, got {values.shape}"
    )
  if not np.isfinite(values).all() or (values < 0).any():
    raise ValueError("kernel must be finite and non-negative everywhere")
  if abs(values.sum() - 1) > 1e-3:
    raise ValueError(f"kernel must sum to 1, got {values.sum():.4g}")
  if boundary not in get_args(Boundary):
    raise ValueError(
      f'boundary must be "reflect", "circular" or "valid", got {boundary!r}'
    )
  if boundary == "valid" and values.shape[0] > min(image_shape[:2]):
    raise ValueError(
      f"image_shape {image_shape} must be that of the scene, at least the "
      f"kernel's {values.shape[0]} pixels a side"
    )
  if boundary == "reflect" and values.shape[0] // 2 >= min(image_shape[:2]):
    raise ValueError(
      f"kernel of size {values.shape[0]} is too wide to mirror an image of "
      f"{image_shape[:2]}; its half must be below the image size"
    )
  if boundary == "valid":
    border = 2 * (values.shape[0] // 2)
    height, width = (n - border for n in image_shape[:2])
    seen = _seen(seen, (height, width))
    return SceneBlur(jnp.asarray(values, jnp.float32), image_shape, seen)
  if seen is not None:
    raise ValueError(
      f'seen must be None unless boundary is "valid", got {seen}'
    )
  # A product of its margins, to the rounding of a float32 kernel.
  factors = np.outer(values.sum(1), values.sum(0)) / values.sum()
  separable = bool(np.abs(factors - values).max() <= 1e-6 * values.max())
  return Blur(
    jnp.asarray(values, jnp.float32), image_shape, boundary, separable
  )


def _seen(
  seen: tuple[int, int] | None, most: tuple[int, int]
) -> tuple[int, int]:
  """Sides of the picture, checked; None: the most that the scene leaves."""
  if seen is None:
    return most
  if not isinstance(seen, list | tuple) or len(seen) != 2:
    raise ValueError(f"seen must be (h, w) or None, got {seen!r}")
  height, width = (fields.whole("seen", n) for n in seen)
  if not (0 < height <= most[0] and 0 < width <= most[1]):
    raise ValueError(
      f"seen must be positive and at most {most}, the scene less k // 2 at "
      f"every side; got {seen}"
    )
  return height, width


def gaussian_blur(
  image_shape: tuple[int, int, int],
  *,
  size: int = 61,
  std: float = 3.0,
  boundary: Boundary = "reflect",
  seen: tuple[int, int] | None = None,
) -> Correlation:
  """Gaussian blur, 61 wide with standard deviation 3 in the benchmark.

  The kernel is a unit impulse passed through SciPy's Gaussian filter, which
  truncates at 4 std, as in the DPS code.

  Args:
    image_shape: (H, W, C).
    size: k, odd.
    std: in pixels, > 0.
    boundary: as of `blur`.
    seen: as of `blur`.

  Raises:
    ValueError: for values out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((64, 64, 3))
    >>> flat = operator.forward(jnp.ones((64, 64, 3)))  # the kernel sums to 1
    >>> bool(jnp.allclose(flat, 1, atol=1e-5))
    True
  """
  if fields.whole("size", size) < 1 or size % 2 == 0:
    raise ValueError(f"size must be odd and positive, got {size}")
  if not 0 < fields.real("std", std) < np.inf:
    raise ValueError(f"std must be positive and finite, got {std}")
  impulse = np.zeros((size, size))
  impulse[size // 2, size // 2] = 1
  kernel = scipy.ndimage.gaussian_filter(impulse, std)
  return blur(image_shape, kernel / kernel.sum(), boundary=boundary, seen=seen)


def motion_blur(
  image_shape: tuple[int, int, int],
  kernel: str | np.ndarray | jax.Array = "medium",
  *,
  boundary: Boundary = "reflect",
) -> Correlation:
  """Motion blur with a frozen random path, 61 wide, intensity 0.5.

  The benchmark's generator draws a new path for every process, which moves
  results by several dB; these ten of its draws are data, verified by their
  hash. "short", "medium" and "long", which the benchmarks report, are those at
  the 10th, 50th and 90th percentile of path length among 200; "p20" is the one
  at the 20th, and so on.

  Args:
    image_shape: (H, W, C).
    kernel: by increasing path length "short", "p20", "p30", "p40", "medium",
      "p60", "p70", "p80", "long" or "p95" (`operators.frozen.ALL_PATHS`), or a
      kernel [k, k].
    boundary: as of `blur`.

  Raises:
    ValueError: for an unknown name or a kernel that is not one.

  Example:
    >>> import posterior_jax as pj
    >>> operator = pj.operators.motion_blur((64, 64, 3), "long")
    >>> operator.kernel.shape, operator.separable
    ((61, 61), False)
  """
  if isinstance(kernel, str):
    kernel = frozen.motion_kernel(kernel)
  return blur(image_shape, kernel, boundary=boundary)
