"""Which back end computes the inverse: the one place that knows platforms.

Names are `auto`, `tpu`, `gpu`, `xla` and `interpret`. The choice is made from
the arguments and, for `auto`, from the platform that a program is lowered
for; never from an environment variable or the default device, so that a CPU
host compiles and exports for the others.
"""

import functools

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from neumann_jax import backends
from neumann_jax.chunk_inverse import xla
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from neumann_jax.chunk_inverse.kernels import gpu, tpu

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "interpret")

_KERNELS = {"tpu": tpu, "gpu": gpu}
# What jax calls the platform of a kernel when it lowers for it.
PLATFORMS = {"tpu": "tpu", "gpu": "cuda"}


def check(
  implementation: str,
  spec: InverseSpec,
  chunk_size: int,
  dtype: DTypeLike = jnp.float32,
) -> None:
  """Raises unless an implementation can compute the inverse.

  Args:
    implementation: one of IMPLEMENTATIONS.
    spec: which method, in which arithmetic.
    chunk_size: C.
    dtype: of the matrices.

  Raises:
    ValueError: for an unknown name, a spec that does not fit the chunk, or a
      kernel that cannot run it, with the reason.
  """
  check_name(implementation)
  spec = resolve(spec, chunk_size)
  if implementation in ("auto", "xla"):
    return
  name = "tpu" if implementation == "interpret" else implementation
  reason = refusal(name, spec, chunk_size, dtype)
  if reason is not None:
    raise ValueError(
      f"implementation={implementation!r} cannot run: {reason}; use 'auto' or "
      "'xla'"
    )


def check_name(implementation: str) -> None:
  """Raises ValueError unless `implementation` is one of IMPLEMENTATIONS."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; "
      f"got {implementation!r}"
    )


def wrong_platform(implementation: str) -> str:
  """What `platforms.only_on` says of a kernel lowered for another platform."""
  return (
    f"implementation={implementation!r} runs on {PLATFORMS[implementation]} "
    "only, but the program is lowered for {platforms}; use 'auto' or 'xla'"
  )


def refusal(
  name: str, spec: InverseSpec, chunk_size: int, dtype: DTypeLike
) -> str | None:
  """Why the kernel "tpu" or "gpu" cannot run this, or None if it can."""
  dtype = jnp.dtype(dtype)
  if dtype == jnp.float64:
    return "float64 matrices have no kernel"
  return _KERNELS[name].refusal(spec, chunk_size)


def invert(
  a: jax.Array,
  bound: jax.Array | None,
  spec: InverseSpec,
  implementation: str,
) -> jax.Array:
  """T = (I + A)^-1 by the implementation that a name stands for.

  Args:
    a: [..., C, C].
    bound: as in `reference.invert`.
    spec: which method, in which arithmetic.
    implementation: "xla" is `reference.invert`; "tpu" and "gpu" are the
      kernels, which raise when lowered for another platform; "interpret" runs
      the TPU kernel's body on any; "auto" takes the kernel of the platform
      where it can run the spec, else "xla", and logs the reason once.

  Returns:
    T in a's dtype, differentiable as `reference.invert` is.
  """
  if implementation == "xla":
    return _reference(a, bound, spec)
  names = tuple(_KERNELS)
  if implementation == "auto":
    names = tuple(n for n in names if _runs(n, spec, a.shape[-1], a.dtype))
    if not names:
      return _reference(a, bound, spec)
  return _kernels(a, bound, spec, implementation, names)


def _runs(name: str, spec: InverseSpec, c: int, dtype: DTypeLike) -> bool:
  reason = refusal(name, spec, c, dtype)
  if reason is not None:
    _log_fallback(name, reason)
  return reason is None


@functools.cache
def _log_fallback(name: str, reason: str) -> None:
  logging.info("implementation 'auto' takes XLA on a %s: %s", name, reason)


def _reference(
  a: jax.Array, bound: jax.Array | None, spec: InverseSpec
) -> jax.Array:
  """In float32, or in float64 for float64 matrices at full precision."""
  wide = a.dtype == jnp.float64 and spec.precision == "float32"
  wide = wide and spec.quant is None
  x = a.astype(jnp.float64 if wide else jnp.float32)
  return xla.invert(x, spec, bound).astype(a.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _kernels(
  a: jax.Array,
  bound: jax.Array | None,
  spec: InverseSpec,
  implementation: str,
  names: tuple[str, ...],
) -> jax.Array:
  """The kernels; their derivative is that of the reference."""
  if implementation == "interpret":
    return tpu.invert(a, spec, bound, interpret=pltpu.InterpretParams())
  if implementation in _KERNELS:
    a = backends.only_on(
      a, PLATFORMS[implementation], wrong_platform(implementation)
    )
    return _KERNELS[implementation].invert(a, spec, bound)
  branches = {
    PLATFORMS[n]: functools.partial(_branch, _KERNELS[n].invert, spec)
    for n in names
  }
  return lax.platform_dependent(
    a, bound, default=lambda a, b: _reference(a, b, spec), **branches
  )


def _branch(kernel, spec, a, bound):
  return kernel(a, spec, bound)


def _kernels_fwd(a, bound, spec, implementation, names):
  return _kernels(a, bound, spec, implementation, names), (a, bound)


def _kernels_bwd(spec, implementation, names, residuals, cotangent):
  del implementation, names
  a, bound = residuals
  return (*jax.vjp(lambda a: _reference(a, bound, spec), a)[1](cotangent), None)


_kernels.defvjp(_kernels_fwd, _kernels_bwd)
