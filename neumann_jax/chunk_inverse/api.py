"""The public chunk inverse: checks, the choice of gradient, dispatch."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import checks
from neumann_jax.chunk_inverse import dispatch, masks, products
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve

Gradient = Literal["implicit", "truncated"]


def inverse(
  a: jax.Array,
  spec: InverseSpec = InverseSpec(),  # noqa: B008  (frozen)
  *,
  envelope: jax.Array | None = None,
  gradient: Gradient = "implicit",
  implementation: str = "auto",
) -> jax.Array:
  """T = (I + A)^-1 for strictly lower triangular A, by matrix products.

  Args:
    a: [..., C, C] floating point, C a power of two. The upper triangle and the
      diagonal are ignored. Products run in float32 (float64 for float64 input
      and precision "float32").
    spec: method and arithmetic.
    envelope: [..., C, C] from `neumann_jax.envelope`; its largest entry fixes
      the scale of `QuantSpec(scale="envelope")`. None assumes beta <= 1:
      magnitudes above 1 saturate.
    gradient: "implicit" is the derivative of the exact inverse evaluated at
      the computed T, -T^t G T^t; "truncated" is the derivative of what was
      computed, straight-through at every rounding of an operand.
    implementation: "auto", "tpu", "gpu", "xla" or "interpret", see
      `dispatch.invert`. A CPU host exports for one platform at a time;
      `jax.export` for CUDA needs its check of the Triton custom call
      disabled, and from jax 0.12 an abstract GPU in `use_abstract_mesh`.

  Returns:
    T, [..., C, C] in a's dtype, unit lower triangular. It has reverse-mode
    derivatives only.

  Raises:
    TypeError: if `a` is not floating point or `spec` no InverseSpec.
    ValueError: if `a` is not square with C a power of two, if `envelope` does
      not match it, or for an unknown name; all before any compilation.
  """
  _check(a, envelope, gradient)
  spec = resolve(spec, a.shape[-1])
  dispatch.check(implementation, spec, a.shape[-1], a.dtype)
  bound = None
  if envelope is not None:
    bound = jnp.max(envelope, axis=(-2, -1), keepdims=True)  # [..., 1, 1]
    bound = lax.stop_gradient(bound.astype(jnp.float32))
  if gradient == "implicit":
    return _implicit(a, bound, spec, implementation)
  return dispatch.invert(a, bound, spec, implementation)


def _check(a: jax.Array, envelope: jax.Array | None, gradient: str) -> None:
  checks.check_floating("a", a)
  if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
    raise ValueError(f"a must have shape [..., C, C], got {a.shape}")
  if envelope is not None:
    fits = envelope.ndim <= a.ndim and envelope.shape[-2:] == a.shape[-2:]
    lead = zip(envelope.shape[-3::-1], a.shape[-3::-1])
    if not fits or any(one not in (1, many) for one, many in lead):
      raise ValueError(
        f"envelope must have the shape of a, {a.shape}, or one that "
        f"broadcasts to it, got {envelope.shape}"
      )
  check_gradient(gradient)


def check_gradient(gradient: str) -> None:
  """Raises ValueError for an unknown gradient."""
  if gradient not in ("implicit", "truncated"):
    raise ValueError(
      f'gradient must be "implicit" or "truncated", got {gradient!r}'
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _implicit(
  a: jax.Array,
  bound: jax.Array | None,
  spec: InverseSpec,
  implementation: str,
) -> jax.Array:
  return dispatch.invert(a, bound, spec, implementation)


def _implicit_fwd(a, bound, spec, implementation):
  t = dispatch.invert(a, bound, spec, implementation)
  return t, t


def _implicit_bwd(spec, implementation, t, cotangent):
  """dL/dA = -T^t (dL/dT) T^t on the strictly lower part."""
  del spec, implementation
  dtype = t.dtype
  wide = jnp.promote_types(dtype, jnp.float32)
  t, cotangent = t.astype(wide), cotangent.astype(wide)
  transposed = jnp.swapaxes(t, -1, -2)
  g = products.full_product(transposed, cotangent)
  g = -products.full_product(g, transposed)
  g = jnp.where(masks.strictly_lower(t.shape[-1]), g, 0)
  return g.astype(dtype), None


_implicit.defvjp(_implicit_fwd, _implicit_bwd)
