"""The WY representation of a chunk: what the delta rule takes from its inverse.

  u = T (beta v),  w = T (beta exp(G) k),  T = (I + A)^-1,

in one kernel that builds A from keys and gates and never writes A or T; its XLA
form is `intra_chunk.terms`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from neumann_jax import backends
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import inputs, layout, precision
from neumann_jax.delta_rule.chunks import intra_chunk
from neumann_jax.delta_rule.gates import finite_decay
from neumann_jax.delta_rule.kernels import wy_gpu, wy_tpu
from neumann_jax.delta_rule.options import RuleOptions


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
    log_decay: [B, T, Hv], log decay per token, <= 0; -inf forgets.
    beta: [B, T, Hv], in [0, 2].
    segment_ids: [B, T] integers, one for each document of a row, or None.
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

  Example:
    Two tokens with one key: the second write first takes back half of what the
    first one wrote.

    >>> import jax.numpy as jnp
    >>> k = jnp.tile(jnp.eye(2)[:1], (2, 1))[None, :, None]  # [1, 2, 1, 2]
    >>> v = jnp.ones((1, 2, 1, 1))
    >>> gates = jnp.zeros((1, 2, 1)), jnp.full((1, 2, 1), 0.5)
    >>> u, w = wy_representation(k, v, *gates, chunk_size=2)
    >>> u[0, :, 0, 0], w[0, :, 0, 0]
    (Array([0.5 , 0.25], dtype=float32), Array([0.5 , 0.25], dtype=float32))
  """
  inputs.check(
    {"k": k, "v": v, "log_decay": log_decay, "beta": beta},
    segment_ids=segment_ids,
  )
  how = RuleOptions(chunk_size, spec, True, implementation)
  check(how, k, v)
  # Kernels are compiled once for all eager calls of a shape and spec.
  run = backends.run if implementation == "xla" else _compiled
  return run(OPERATION, implementation, how, k, v, log_decay, beta, segment_ids)


_compiled = jax.jit(backends.run, static_argnums=(0, 1, 2))


def check(
  how: RuleOptions,
  k: jax.Array | jax.ShapeDtypeStruct,
  v: jax.Array | jax.ShapeDtypeStruct,
) -> None:
  """Raises ValueError unless a named kernel can run.

  Args:
    how: `fused` options.
    k: [..., Dk]; like v only its last axis and type are read.
    v: [..., Dv].
  """
  backends.check(OPERATION, how.implementation, how, k, v)


def _in_xla(
  how: RuleOptions,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  segment_ids: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """What the kernels compute."""
  chunks = layout.split(
    None,
    *(k, v, log_decay, beta, segment_ids),
    chunk_size=how.chunk_size,
    dtype=precision.product_dtype(v, k),
  )
  plain = RuleOptions(how.chunk_size, how.spec, implementation="xla")
  terms = intra_chunk.terms(chunks, plain)
  u, w = (
    layout.merge_values(x)[:, : v.shape[1]].astype(v.dtype)
    for x in (terms.u, terms.w)
  )
  return u, w


def _kernel(module: Any) -> backends.Kernel:
  """The kernel of a module, which takes whole chunks and no documents."""

  def refusal(how: RuleOptions, k: Any, v: Any, *gates: Any) -> str | None:
    del gates
    quant = how.spec.quant
    if quant is not None and quant.scale == "envelope":
      return "a fused kernel has no envelope; use QuantSpec(scale='dynamic')"
    dtype = jnp.promote_types(k.dtype, v.dtype)
    widths = k.shape[-1], v.shape[-1]
    return module.refusal(how.inverse, how.chunk_size, dtype, widths)

  return backends.Kernel(refusal, _launcher(module.wy))


def _launcher(wy: Callable[..., tuple]) -> Callable[..., tuple]:
  def launch(
    how: RuleOptions,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    segment_ids: jax.Array | None,
    **options: Any,
  ) -> tuple[jax.Array, jax.Array]:
    length, dtype = v.shape[1], v.dtype
    # A kernel multiplies one type. Documents reach it as decays of 0.
    common = jnp.promote_types(k.dtype, v.dtype)
    arrays = (
      layout.padded(x, how.chunk_size)
      for x in (
        k.astype(common),
        v.astype(common),
        finite_decay(log_decay, segment_ids),
        beta,
      )
    )
    u, w = wy(*arrays, spec=how.inverse, chunk_size=how.chunk_size, **options)
    return u[:, :length].astype(dtype), w[:, :length].astype(dtype)

  return launch


# (RuleOptions, k, v, log_decay, beta, segment_ids) -> u, w as above.
OPERATION = backends.Operation(
  _in_xla,
  {"tpu": _kernel(wy_tpu), "gpu": _kernel(wy_gpu)},
  asked="fused=True with ",
)
