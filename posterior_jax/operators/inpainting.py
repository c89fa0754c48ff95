"""Inpainting: y = m x, pixels dropped in all channels together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import solve
from posterior_jax.linalg.svd import Svd
from posterior_jax.operators.shapes import check_batch, check_image_shape
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inpainting(Operator):
  """Keeps the pixels where `mask` is 1.

  The measurement has the image's shape; noise is added on dropped pixels too,
  and never read, because the adjoint masks it.

  Attributes:
    mask: [H, W, 1] float32 of zeros and ones.
    image_shape: (H, W, C).
    contiguous: whether the dropped pixels form a few holes, rather than being
      scattered; chooses the solver, not the result.
  """

  mask: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  contiguous: bool = dataclasses.field(default=False, metadata={"static": True})

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(H, W, C)."""
    return self.image_shape

  @property
  def observed(self) -> jax.Array:
    """The mask: what stands elsewhere in a measurement is never read."""
    return self.mask

  @property
  def pictorial(self) -> bool:
    """True."""
    return True

  @property
  def even(self) -> bool:
    """True."""
    return True

  @property
  def gram_gain(self) -> jax.Array:
    """Share of observed pixels, at every frequency."""
    return jnp.mean(self.mask)

  def forward(self, x: jax.Array) -> jax.Array:
    """m x."""
    check_batch("x", x, self.image_shape)
    return self.mask.astype(x.dtype) * x

  def adjoint(self, y: jax.Array) -> jax.Array:
    """m y."""
    check_batch("y", y, self.image_shape)
    return self.mask.astype(y.dtype) * y

  def svd(self) -> Svd:
    """The mask itself: pixels are the singular vectors."""
    same = jax.tree_util.Partial(_same)
    return Svd(self.mask, same, same, same, same)

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Closed form for a scalar precision, else conjugate gradients.

    A contiguous hole is solved for alone (`solve.masked_convolution`).
    Scattered pixels make its preconditioner poor and the mean of the mask a
    good one instead.
    """
    if jnp.ndim(precision) == 0:
      return solve.closed_form(self.svd(), rhs, precision, noise_std)
    stop: dict = {"tolerance": tolerance, "max_iterations": max_iterations}
    if self.contiguous:
      return solve.masked_convolution(
        None,
        self.mask,
        rhs,
        precision=precision,
        noise_std=noise_std,
        **stop,
      )
    return solve.normal_equations(
      self.forward,
      self.gram_gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      **stop,
    )


def inpainting(
  image_shape: tuple[int, int, int],
  mask: np.ndarray,
  *,
  contiguous: bool | None = None,
) -> Inpainting:
  """Inpainting with a mask of one's own.

  Args:
    image_shape: (H, W, C).
    mask: [H, W], 1 where the pixel is observed, 0 where it is dropped.
    contiguous: whether the dropped pixels form a few holes; None decides by
      the mask's edges. Masks that differ in it compile anew.

  Raises:
    ValueError: for a mask of another size, or with other values, or empty.

  Example:
    >>> import numpy as np
    >>> import posterior_jax as pj
    >>> mask = np.eye(4)
    >>> operator = pj.operators.inpainting((4, 4, 1), mask)
    >>> operator.forward(np.ones((4, 4, 1), np.float32)).sum().item()
    4.0
  """
  image_shape = check_image_shape(image_shape)
  mask = fields.array("mask", mask)
  if mask.shape != image_shape[:2]:
    raise ValueError(
      f"mask must have the image's size {image_shape[:2]}, got {mask.shape}"
    )
  if not np.isin(mask, (0, 1)).all():
    raise ValueError("mask must hold only 0 (dropped) and 1 (observed)")
  if not mask.any():
    raise ValueError("mask must keep at least one pixel, it drops all")
  if contiguous is None:
    edges = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
    # Scattered pixels have of the order of one edge each, holes far fewer.
    contiguous = bool(edges < 0.25 * (mask == 0).sum())
  leaf = jnp.asarray(mask, jnp.float32)[..., None]
  return Inpainting(leaf, image_shape, contiguous)


def box_inpainting(
  image_shape: tuple[int, int, int],
  *,
  size: int = 128,
  corner: tuple[int, int] | None = None,
) -> Inpainting:
  """Drops a square, 128 x 128 of 256 x 256 in the field's benchmark.

  Args:
    image_shape: (H, W, C).
    size: side of the square in pixels.
    corner: its top-left pixel (row, column); None centres it. The benchmark
      draws it, 16 or more from the border; the frozen draw is
      `frozen.box_corner()`.

  Raises:
    ValueError: if the square leaves the image or covers it.

  Example:
    >>> import posterior_jax as pj
    >>> operator = pj.operators.box_inpainting((64, 64, 3), size=32)
    >>> int(operator.mask.sum())  # 64 * 64 - 32 * 32
    3072
  """
  image_shape = check_image_shape(image_shape)
  height, width, _ = image_shape
  size = fields.whole("size", size)
  row, col = corner or ((height - size) // 2, (width - size) // 2)
  inside = 0 <= row <= height - size and 0 <= col <= width - size
  if size < 1 or not inside:
    raise ValueError(
      f"box of size {size} at corner {(row, col)} must lie inside the image "
      f"{image_shape[:2]}"
    )
  mask = np.ones((height, width), np.float32)
  mask[row : row + size, col : col + size] = 0
  return inpainting(image_shape, mask, contiguous=True)


def random_inpainting(
  image_shape: tuple[int, int, int], *, fraction: float = 0.7, seed: int = 0
) -> Inpainting:
  """Drops exactly int(fraction H W) pixels, drawn without replacement.

  Args:
    image_shape: (H, W, C).
    fraction: share of dropped pixels, in [0, 1).
    seed: of numpy's default generator, so the mask is the same everywhere;
      at least 0.

  Raises:
    ValueError: if the fraction or the seed is out of range.

  Example:
    >>> import posterior_jax as pj
    >>> operator = pj.operators.random_inpainting((10, 10, 3), fraction=0.7)
    >>> int(operator.mask.sum())
    30
  """
  image_shape = check_image_shape(image_shape)
  if not 0 <= fields.real("fraction", fraction) < 1:
    raise ValueError(f"fraction must lie in [0, 1), got {fraction}")
  height, width, _ = image_shape
  count = height * width
  if fields.whole("seed", seed) < 0:
    raise ValueError(f"seed must be at least 0, got {seed}")
  order = np.random.default_rng(seed).permutation(count)
  mask = np.ones((height, width), np.float32)
  mask.flat[order[: int(fraction * count)]] = 0
  return inpainting(image_shape, mask, contiguous=False)


def _same(x: jax.Array) -> jax.Array:
  return x
