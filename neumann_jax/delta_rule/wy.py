"""The WY representation of a chunk: what the delta rule takes from its inverse.

  u = T (beta v),  w = T (beta exp(G) k),  T = (I + A)^-1,

by XLA for chunks that are already split, or in one kernel that builds A from
keys and gates and never writes A or T.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from neumann_jax import backends
from neumann_jax.chunk_inverse import bounds, dispatch
from neumann_jax.chunk_inverse.api import Gradient, inverse
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from neumann_jax.delta_rule import inputs, layout
from neumann_jax.delta_rule.kernels import wy_gpu, wy_tpu

_KERNELS = {"tpu": wy_tpu, "gpu": wy_gpu}


def wy_representation(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  segment_ids: jax.Array | None = None,
  chunk_size: int = 64,
  spec: InverseSpec = InverseSpec(),  # noqa: B008  (frozen)
  implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
  """u = T (beta v) and w = T (beta exp(G) k) of every chunk, in one kernel.

  The kernel multiplies k and v in their own type, with sums in float32: exact
  for bfloat16 inputs but for T, which is rounded to that type. A decay behind
  a token that forgets nearly everything, within 16 tokens of it, is accurate
  to 4e-4. Derivatives are those of the same computation in XLA.

  Args:
    k: [B, T, Hk, Dk], normalised keys, T >= 1.
    v: [B, T, Hv, Dv], Hv a whole multiple of Hk.
    log_decay: [B, T, Hv], <= 0; -inf forgets.
    beta: [B, T, Hv], in [0, 2].
    segment_ids: [B, T] integers, non-decreasing along a row, or None.
    chunk_size: C, a power of two; the last chunk is padded with inert tokens.
    spec: method and arithmetic of the inverse.
    implementation: "tpu" and "gpu" are the kernels, "interpret" runs the TPU
      kernel's body on any platform, "xla" the plain computation; "auto" takes
      the kernel of the platform where it can run, else "xla".

  Returns:
    u [B, T, Hv, Dv] and w [B, T, Hv, Dk] in v's type.

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape, a value or an option out of range, or a kernel
      that cannot run, with the reason.
  """
  inputs.check(
    {"k": k, "v": v, "log_decay": log_decay, "beta": beta},
    segment_ids=segment_ids,
  )
  check(implementation, spec, chunk_size, k, v)
  return compute(
    k, v, log_decay, beta, segment_ids, spec, chunk_size, implementation
  )


def compute(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  segment_ids: jax.Array | None,
  spec: InverseSpec,
  chunk_size: int,
  implementation: str,
) -> tuple[jax.Array, jax.Array]:
  """`wy_representation` of operands that have been checked."""
  arrays = (k, v, log_decay, beta, segment_ids)
  if implementation == "xla":
    return _reference(*arrays, spec, chunk_size)
  return _fused(*arrays, spec, chunk_size, implementation)


def check(
  implementation: str,
  spec: InverseSpec,
  chunk_size: int,
  k: jax.Array | jax.ShapeDtypeStruct,
  v: jax.Array | jax.ShapeDtypeStruct,
) -> None:
  """Raises ValueError unless the fused computation can run."""
  dispatch.check_name(implementation)
  spec = resolve(spec, chunk_size)
  if implementation in ("auto", "xla"):
    return
  name = "tpu" if implementation == "interpret" else implementation
  reason = _refusal(name, spec, chunk_size, k, v)
  if reason is not None:
    raise ValueError(
      f"fused=True with implementation={implementation!r} cannot run: {reason}"
    )


def in_xla(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  segment_ids: jax.Array | None,
  *,
  spec: InverseSpec,
  chunk_size: int,
  dtype: DTypeLike,
  implementation: str,
  gradient: Gradient = "implicit",
) -> tuple[jax.Array, jax.Array]:
  """u and w in XLA around the inverse.

  Args:
    k: [B, T, Hk, Dk].
    v: [B, T, Hv, Dv].
    log_decay: [B, T, Hv].
    beta: [B, T, Hv].
    segment_ids: [B, T] or None.
    spec: method and arithmetic of the inverse.
    chunk_size: C.
    dtype: of u and w and of the operands of products; A and T have 32 bits
      or more.
    implementation: of the inverse.
    gradient: of the inverse.

  Returns:
    u [B, T, Hv, Dv] and w [B, T, Hv, Dk].
  """
  heads, length = k.shape[2], v.shape[1]
  norm = _key_norm(k)
  k = layout.split_keys(k.astype(dtype), chunk_size)  # [N, B, Hk, C, Dk]
  v = layout.split_values(v.astype(dtype), chunk_size, heads)
  wide = inputs.compute_dtype(v)
  beta, log_decay = (
    layout.split_gates(x.astype(wide), chunk_size, heads)
    for x in (beta, log_decay)
  )  # [N, B, Hk, R, C]
  documents = layout.split_documents(segment_ids, chunk_size)
  gates = layout.chunk_gates(log_decay, documents)
  a = layout.matrix(k, beta, gates.decay)  # [N, B, Hk, R, C, C]
  envelope = None
  if spec.quant is not None and spec.quant.scale == "envelope":
    envelope = bounds.envelope(beta, log_decay, key_norm=norm)
  t = inverse(
    a,
    spec,
    envelope=envelope,
    gradient=gradient,
    implementation=implementation,
  )
  t = t * beta[..., None, :]
  dot = functools.partial(inputs.einsum, dtype=dtype)
  u = dot("nbhrij,nbhrjv->nbhriv", t, v)
  w = dot("nbhrij,nbhjd->nbhrid", t * gates.enter[..., None, :], k)
  u, w = (layout.merge_values(x, length).astype(dtype) for x in (u, w))
  return u, w


def _key_norm(k: jax.Array) -> float:
  """A unit key rounded to a narrow type can be longer by its roundoff."""
  return 1.0 + float(jnp.finfo(k.dtype).eps) / 2


def _reference(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  segment_ids: jax.Array | None,
  spec: InverseSpec,
  c: int,
) -> tuple[jax.Array, jax.Array]:
  """What the kernels compute, in XLA."""
  u, w = in_xla(
    k,
    v,
    log_decay,
    beta,
    segment_ids,
    spec=spec,
    chunk_size=c,
    dtype=inputs.product_dtype(v, k),
    implementation="xla",
  )
  return u.astype(v.dtype), w.astype(v.dtype)


def _refusal(
  name: str,
  spec: InverseSpec,
  c: int,
  k: jax.Array | jax.ShapeDtypeStruct,
  v: jax.Array | jax.ShapeDtypeStruct,
) -> str | None:
  """Why a fused kernel cannot run, as a clause, or None if it can."""
  if spec.quant is not None and spec.quant.scale == "envelope":
    return "a fused kernel has no envelope; use QuantSpec(scale='dynamic')"
  dtype = jnp.promote_types(k.dtype, v.dtype)
  return _KERNELS[name].refusal(spec, c, dtype, (k.shape[-1], v.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def _fused(k, v, log_decay, beta, segment_ids, spec, c, implementation):
  spec = resolve(spec, c)
  arrays = (k, v, log_decay, beta, segment_ids)
  if implementation == "interpret":
    return _launch("tpu", spec, c, *arrays, interpret=pltpu.InterpretParams())
  if implementation != "auto":
    k = backends.only_on(
      k,
      dispatch.PLATFORMS[implementation],
      dispatch.wrong_platform(implementation),
    )
    return _launch(implementation, spec, c, k, *arrays[1:])
  branches = {
    dispatch.PLATFORMS[name]: functools.partial(_launch, name, spec, c)
    for name in _KERNELS
    if _refusal(name, spec, c, k, v) is None
  }
  default = functools.partial(_reference, spec=spec, c=c)
  if not branches:
    return default(*arrays)
  return lax.platform_dependent(*arrays, default=default, **branches)


def _launch(name, spec, c, k, v, log_decay, beta, segment_ids, **options):
  """Pads to whole chunks and calls a kernel; documents become decays of 0."""
  length, dtype = v.shape[1], v.dtype
  log_decay = layout.finite_decay(log_decay, segment_ids)
  common = jnp.promote_types(k.dtype, v.dtype)
  k, v, log_decay, beta = (
    layout.padded(x, c)
    for x in (k.astype(common), v.astype(common), log_decay, beta)
  )
  u, w = _KERNELS[name].wy(
    k, v, log_decay, beta, spec=spec, chunk_size=c, **options
  )
  return u[:, :length].astype(dtype), w[:, :length].astype(dtype)


def _fused_fwd(*args):
  return _fused(*args), args[:5]


def _fused_bwd(spec, c, implementation, arrays, cotangents):
  del implementation
  *arrays, segment_ids = arrays
  _, pull = jax.vjp(
    lambda k, v, g, b: _reference(k, v, g, b, segment_ids, spec, c), *arrays
  )
  return (*pull(cotangents), None)


_fused.defvjp(_fused_fwd, _fused_bwd)
