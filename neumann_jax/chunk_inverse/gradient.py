"""The chunk inverse as an operation of `backends`, and its two derivatives.

Both compute the same T. "implicit" differentiates the exact inverse at the
computed T; "truncated" differentiates what was computed, through every product.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from neumann_jax import backends
from neumann_jax.chunk_inverse import masks, products, xla
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import gpu, tpu

Gradient = Literal["implicit", "truncated"]


def check_gradient(gradient: str) -> None:
  """Raises ValueError for an unknown gradient."""
  if gradient not in OPERATIONS:
    raise ValueError(
      f'gradient must be "implicit" or "truncated", got {gradient!r}'
    )


def _kernel(refusal: Callable, launch: Callable) -> backends.Kernel:
  def of_matrices(spec: InverseSpec, a: Any, bound: Any = None) -> str | None:
    del bound
    if a.dtype == jnp.float64:
      return "float64 matrices have no kernel"
    return refusal(spec, a.shape[-1])

  return backends.Kernel(of_matrices, _with_nan(launch))


def _with_nan(launch: Callable) -> Callable:
  """A launch whose integer codes cannot hide NaN of a matrix.

  Dynamic scales are NaN where a row or column is; a fixed one knows nothing.
  """

  def of_matrices(spec: InverseSpec, a: Any, bound: Any = None, **options: Any):
    t = launch(spec, a, bound, **options)
    quant = spec.quant
    if quant is None or not quant.integer or quant.scale != "envelope":
      return t
    lower = jnp.where(masks.strictly_lower(a.shape[-1]), a, 0)
    found = jnp.isnan(lower).any(axis=(-2, -1), keepdims=True)
    return jnp.where(found, jnp.nan, t)

  return of_matrices


def _implicit_jvp(implementation, spec, primals, tangents):
  """dT = -T dA T, of which -T^t (dL/dT) T^t is the transpose."""
  a, bound = primals
  t = backends.run(OPERATIONS["implicit"], implementation, spec, a, bound)
  wide = jnp.promote_types(t.dtype, jnp.float32)
  x = t.astype(wide)
  lower = masks.strictly_lower(t.shape[-1])
  d = jnp.where(lower, tangents[0], 0).astype(wide)
  # In full precision whatever the spec's is: a derivative is no operand of the
  # inverse, and its scale is not the envelope's.
  d = products.full_product(x, products.full_product(d, x))  # [..., C, C]
  return t, -d.astype(t.dtype)


# Arrays are a [..., C, C] and the bound of the envelope scale or None; the
# static part is a resolved spec.
_KERNELS = {
  "tpu": _kernel(tpu.refusal, tpu.invert),
  "gpu": _kernel(gpu.refusal, gpu.invert),
}
OPERATIONS: dict[str, backends.Operation] = {
  "implicit": backends.Operation(xla.invert, _KERNELS, jvp=_implicit_jvp),
  "truncated": backends.Operation(xla.invert, _KERNELS),
}


def check(
  implementation: str,
  spec: InverseSpec,
  a: jax.Array | jax.ShapeDtypeStruct,
) -> None:
  """Raises ValueError unless a named kernel can invert a by a resolved spec."""
  backends.check(OPERATIONS["implicit"], implementation, spec, a)
