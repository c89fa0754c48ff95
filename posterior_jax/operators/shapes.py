"""Shapes that an operator accepts, checked before it is built or applied."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
  """(H, W, C) as integers, before an operator is built on it.

  Raises:
    ValueError: unless three positive integers.
  """
  shape = tuple(image_shape) if np.iterable(image_shape) else (image_shape,)
  whole = all(isinstance(n, int | np.integer) and n > 0 for n in shape)
  if len(shape) != 3 or not whole:
    raise ValueError(
      f"image_shape must be (H, W, C), three positive integers, got "
      f"{image_shape}"
    )
  height, width, channels = map(int, shape)
  return height, width, channels


def widened(name: str, x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """`check_batch`, and x in the float32 or float64 that FFTs take."""
  check_batch(name, x, shape)
  return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def check_batch(name: str, x: jax.Array, shape: tuple[int, int, int]) -> None:
  """Refuses what is no floating-point batch of the given shape.

  Args:
    name: of the argument.
    x: [..., *shape].
    shape: expected last three axes.

  Raises:
    TypeError: if x is not a floating-point array.
    ValueError: for another shape.
  """
  dtype = getattr(x, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    found = type(x).__name__ if dtype is None else f"dtype {dtype}"
    raise TypeError(f"{name} must be a floating-point array, got {found}")
  if x.ndim < 3 or x.shape[-3:] != shape:
    raise ValueError(
      f"{name} must have shape [..., {', '.join(map(str, shape))}], got "
      f"{x.shape}"
    )
