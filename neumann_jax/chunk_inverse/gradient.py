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

  return backends.Kernel(of_matrices, launch)


def _implicit_fwd(implementation, spec, a, bound=None):
  t = backends.run(OPERATIONS["implicit"], implementation, spec, a, bound)
  return t, t


def _implicit_bwd(implementation, spec, t, cotangent):
  """dL/dA = -T^t (dL/dT) T^t on the strictly lower part."""
  del implementation, spec
  dtype = t.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  t, cotangent = t.astype(wide), cotangent.astype(wide)
  transposed = jnp.swapaxes(t, -1, -2)
  # In full precision whatever the spec's is: a gradient is no operand of the
  # inverse, and its scale is not the envelope's.
  g = products.full_product(transposed, cotangent)  # [..., C, C]
  g = -products.full_product(g, transposed)
  g = jnp.where(masks.strictly_lower(t.shape[-1]), g, 0)
  return g.astype(dtype), None


# Arrays are a [..., C, C] and the bound of the envelope scale or None; the
# static part is a resolved spec.
_KERNELS = {
  "tpu": _kernel(tpu.refusal, tpu.invert),
  "gpu": _kernel(gpu.refusal, gpu.invert),
}
OPERATIONS: dict[str, backends.Operation] = {
  "implicit": backends.Operation(
    xla.invert, _KERNELS, fwd=_implicit_fwd, bwd=_implicit_bwd
  ),
  "truncated": backends.Operation(xla.invert, _KERNELS),
}


def check(
  implementation: str,
  spec: InverseSpec,
  a: jax.Array | jax.ShapeDtypeStruct,
) -> None:
  """Raises ValueError unless a named kernel can invert a by a resolved spec."""
  backends.check(OPERATIONS["implicit"], implementation, spec, a)
