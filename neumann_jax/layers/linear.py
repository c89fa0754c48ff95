"""The linear map of every block: kernel [in, out], usually without a bias."""

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
  preferred_element_type: jnp.dtype | None = None,
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
    preferred_element_type: of sums and results; None: dtype.
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
    preferred_element_type=preferred_element_type,
    kernel_init=nnx.initializers.lecun_normal()
    if std is None
    else nnx.initializers.normal(std),
    rngs=rngs,
  )
