"""The linear map of every block: kernel [in, out], usually without a bias."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def linear(
  in_features: int,
  out_features: int,
  *,
  rngs: nnx.Rngs,
  use_bias: bool = False,
  std: float | None = None,
  dtype: jnp.dtype = jnp.float32,
  param_dtype: jnp.dtype = jnp.float32,
  wide: bool = False,
) -> nnx.Linear:
  """An `nnx.Linear` whose float32 products are float32 on every platform.

  Args:
    in_features: size of the last axis of the input.
    out_features: of the output.
    rngs: source of the initial kernel.
    use_bias: whether a bias is added.
    std: standard deviation of the kernel; None is in_features^-0.5, from a
      truncated normal.
    dtype: of operands.
    param_dtype: of the parameters.
    wide: whether results are float32, see `wide_product`, whatever dtype is.
  """
  # HIGHEST: a TPU would round float32 operands to bfloat16, a GPU to tf32. It
  # changes nothing for operands that are bfloat16 already.
  return nnx.Linear(
    in_features,
    out_features,
    use_bias=use_bias,
    dtype=dtype,
    param_dtype=param_dtype,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32 if wide else None,
    dot_general=_wide_dot_general if wide else lax.dot_general,
    kernel_init=nnx.initializers.lecun_normal()
    if std is None
    else nnx.initializers.normal(std),
    rngs=rngs,
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def wide_product(x: jax.Array, kernel: jax.Array, axis: int = 0) -> jax.Array:
  """x times a matrix with float32 sums and results, differentiated in x's type.

  Args:
    x: [..., K].
    kernel: [K, N], or [N, K] with axis 1, of x's type.
    axis: of the kernel that is summed over.

  Returns:
    [..., N] float32.
  """
  return product(x, kernel, axis, jnp.float32)


@wide_product.defjvp
def _wide_product_jvp(axis, primals, tangents):
  x, kernel = primals
  dx, dkernel = tangents
  # A float32 cotangent would make both products of the backward pass float32
  # ones, without a matrix unit on a GPU: at the width of a vocabulary that is
  # most of a training step. Rounded it is what every other layer gets.
  tangent = product(dx, kernel, axis) + product(x, dkernel, axis)
  return wide_product(x, kernel, axis), tangent.astype(jnp.float32)


def product(
  x: jax.Array,
  kernel: jax.Array,
  axis: int = 0,
  preferred: jnp.dtype | None = None,
) -> jax.Array:
  """x times a matrix as every `linear` layer multiplies, see `wide_product`.

  Args:
    x: [..., K].
    kernel: [K, N], or [N, K] with axis 1, of x's type.
    axis: of the kernel that is summed over.
    preferred: type of the result; None: x's.
  """
  return lax.dot_general(
    x,
    kernel,
    (((x.ndim - 1,), (axis,)), ((), ())),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=preferred,
  )


def _wide_dot_general(
  x: jax.Array, kernel: jax.Array, *unused: Any, **more: Any
) -> jax.Array:
  """`wide_product` as `nnx.Linear` calls its product."""
  del unused, more
  return wide_product(x, kernel)
