"""A convolution whose transpose is as quick in a loop as outside of one.

JAX writes the transpose of a convolution, one half of a VJP through a network,
with the kernel's axes swapped by name. XLA finds its quick CPU kernels for that
at top level but not within a scan or a while loop, where the swapped kernel
does not change; there it is many times slower, to compile as well. Swapped as
data, both are the same convolution.

`linear_call` would say so in a line, but has no vmap, and `custom_vjp` no
forward mode: hence a primitive, by the public means that JAX gives for one.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NAMES = ("NHWC", "HWIO", "NHWC")

_convolution = Primitive("same_size_convolution")


def convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **options: Any,
) -> jax.Array:
  """`lax.conv_general_dilated`, which it is but for its transpose.

  Two dimensions with the channels last, of which nothing is strided, dilated,
  grouped or sharded and the image keeps its size, have the transpose above,
  others JAX's. The same numbers either way.

  Args:
    x: [N, H, W, A].
    kernel: [h, w, A, B].
    strides: of the window.
    padding: as of `lax.conv_general_dilated`.
    **options: as of `lax.conv_general_dilated`.

  Returns:
    [N, H', W', B].
  """
  alike = _varying(x) == _varying(kernel)  # else JAX casts one of them
  if not alike or not _is_plain(x, kernel, strides, padding, options):
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)
  # What the context says here, not where the program is lowered.
  context = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  precision = options.get("precision") or context
  return _convolution.bind(x, kernel, precision=precision)


def _varying(x: jax.Array) -> Any:
  """Over which axes of a mesh an array differs, inside `jax.shard_map`."""
  return getattr(jax.typeof(x), "manual_axis_type", None)


def _is_plain(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  options: dict[str, Any],
) -> bool:
  """Whether nothing but the precision differs from `_plain`."""
  if x.ndim != 4:
    return False
  known = "precision", "dimension_numbers", "lhs_dilation", "rhs_dilation"
  others = {value for name, value in options.items() if name not in known}
  given, ours = (
    lax.conv_dimension_numbers(x.shape, kernel.shape, names)
    for names in (options.get("dimension_numbers"), NAMES)
  )
  dilations = options.get("lhs_dilation"), options.get("rhs_dilation")
  steps = {*strides, *(step for d in dilations for step in d or ())}
  odd = all(side % 2 for side in kernel.shape[:2])
  alone = others <= {None, 1}  # no sharding, no groups
  return given == ours and alone and steps == {1} and padding == "SAME" and odd


def _plain(x: jax.Array, kernel: jax.Array, *, precision: Any) -> jax.Array:
  return lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=NAMES, precision=precision
  )


def _transposed_in_x(
  dy: jax.Array, x: Any, kernel: jax.Array, **options: Any
) -> jax.Array:
  """Of what maps x to y: the same convolution, its kernel turned."""
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  return _convolution.bind(dy, turned, **options)


def _transposed_in_kernel(
  dy: jax.Array, x: jax.Array, kernel: Any, **options: Any
) -> jax.Array:
  linear = functools.partial(_plain, x, **options)
  return jax.linear_transpose(linear, kernel.aval)(dy)[0]


def _batched(
  arrays: Sequence[jax.Array], axes: Sequence[int | None], **options: Any
) -> tuple[jax.Array, int]:
  """More images for one kernel; as JAX does it for several kernels."""
  x, kernel = arrays
  along, other = axes
  if along is None or other is not None:
    plain: Any = functools.partial(_plain, **options)
    return jax.vmap(plain, (along, other))(x, kernel), 0
  x = jnp.moveaxis(x, along, 0)
  y = _convolution.bind(x.reshape(-1, *x.shape[2:]), kernel, **options)
  return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _abstract(x: Any, kernel: Any, **options: Any) -> Any:
  arrays = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, kernel))
  y = jax.eval_shape(functools.partial(_plain, **options), *arrays)  # refuses
  return x.update(shape=y.shape, dtype=y.dtype)


_convolution.def_impl(jax.jit(_plain, static_argnames="precision"))
_convolution.def_abstract_eval(_abstract)
mlir.register_lowering(
  _convolution, mlir.lower_fun(_plain, multiple_results=False)
)
ad.defbilinear(_convolution, _transposed_in_x, _transposed_in_kernel)
batching.primitive_batchers[_convolution] = _batched

# of any network here, with the parameters of flax's own
Conv = functools.partial(nnx.Conv, conv_general_dilated=convolve)
