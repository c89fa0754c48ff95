"""The public chunk inverse: what it accepts, and what it returns."""

import jax
import jax.numpy as jnp

from neumann_jax import backends, checks
from neumann_jax.chunk_inverse import bounds
from neumann_jax.chunk_inverse import gradient as derivatives
from neumann_jax.chunk_inverse.gradient import Gradient
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve


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
    a: [..., C, C] floating point, C a power of two, any number of matrices,
      none included. The upper triangle and the diagonal are ignored. Products
      run in float32 (float64 for float64 input and precision "float32").
    spec: method and arithmetic.
    envelope: [..., C, C] from `neumann_jax.envelope`; its largest entry fixes
      the scale of `QuantSpec(scale="envelope")`. None assumes beta <= 1:
      magnitudes above 1 saturate.
    gradient: "implicit" is the derivative of the exact inverse evaluated at
      the computed T, -T^t G T^t; "truncated" is the derivative of what was
      computed, straight-through at every rounding of an operand.
    implementation: "auto", "tpu", "gpu", "xla" or "interpret", see
      `backends.run`. Any host exports for any platforms, "tpu" and "gpu" for
      their own alone; `jax.export` for CUDA needs its check of the Triton
      custom call disabled unless this is "xla", and a CPU host from jax 0.12
      an abstract GPU in `use_abstract_mesh`.

  Returns:
    T, [..., C, C] in a's dtype, unit lower triangular; differentiable forward
    and backward.

  Raises:
    TypeError: if `a` or `envelope` is not floating point, or `spec` is no
      InverseSpec.
    ValueError: if `a` is not square with C a power of two, if `envelope` does
      not match it, or for an unknown name; all before any compilation.

  Example:
    One key, written with beta = 0.5 at every token, nothing forgotten:

    >>> import jax.numpy as jnp
    >>> inverse(jnp.full((4, 4), 0.5))
    Array([[ 1.   ,  0.   ,  0.   ,  0.   ],
           [-0.5  ,  1.   ,  0.   ,  0.   ],
           [-0.25 , -0.5  ,  1.   ,  0.   ],
           [-0.125, -0.25 , -0.5  ,  1.   ]], dtype=float32)
  """
  _check(a, envelope, gradient)
  spec = resolve(spec, a.shape[-1])
  derivatives.check(implementation, spec, a)
  if a.size == 0:
    return jnp.asarray(a)
  # Scales read the largest entry alone: the envelope itself stays out of the
  # program of the inverse.
  bound = None if envelope is None else bounds.largest(envelope)
  operation = derivatives.OPERATIONS[gradient]
  return backends.run(operation, implementation, spec, a, bound)


def _check(a: jax.Array, envelope: jax.Array | None, gradient: str) -> None:
  checks.check_floating("a", a)
  if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
    raise ValueError(f"a must have shape [..., C, C], got {a.shape}")
  if envelope is not None:
    checks.check_floating("envelope", envelope)
    fits = envelope.ndim <= a.ndim and envelope.shape[-2:] == a.shape[-2:]
    lead = zip(envelope.shape[-3::-1], a.shape[-3::-1])
    if not fits or any(one not in (1, many) for one, many in lead):
      raise ValueError(
        f"envelope must have the shape of a, {a.shape}, or one that "
        f"broadcasts to it, got {envelope.shape}"
      )
  derivatives.check_gradient(gradient)
