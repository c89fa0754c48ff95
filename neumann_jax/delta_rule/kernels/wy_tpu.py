"""u = T (beta v) and w = T (beta exp(G) k) of a chunk in one TPU kernel.

A and T never leave vector memory. Heads lead, because a block's last two axes
must be whole registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.chunk_inverse import methods
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import products, tpu

# Tokens a grid step, 8 chunks of 64: a batch for the matrix unit.
_TOKENS = 512


def refusal(
  spec: InverseSpec,
  chunk_size: int,
  dtype: jnp.dtype,
  widths: tuple[int, int],
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can."""
  del widths  # any
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"a TPU multiplies float32 and bfloat16, not {jnp.dtype(dtype)}"
  return tpu.refusal(spec, chunk_size)


def wy(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  spec: InverseSpec,
  chunk_size: int,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
  """As `wy_gpu.wy`."""
  (b, t, hk, dk), (hv, dv) = k.shape, v.shape[2:]
  step = max(
    n
    for n in range(chunk_size, max(_TOKENS, chunk_size) + 1, chunk_size)
    if t % n == 0
  )
  heads_first = [jnp.swapaxes(x, 1, 2) for x in (k, v)]  # [B, H, T, D]
  gates = [
    jnp.swapaxes(x.astype(jnp.float32), 1, 2)[..., None]
    for x in (log_decay, beta)
  ]  # [B, Hv, T, 1]

  def block(width: int, heads: int) -> pl.BlockSpec:
    return pl.BlockSpec(
      (1, 1, step, width), lambda b, h, n: (b, lax.div(h, heads), n, 0)
    )

  vma = jax.typeof(k).manual_axis_type
  u, w = lowering.pallas_call(
    functools.partial(_kernel, spec=spec, c=chunk_size),
    out_shape=[
      jax.ShapeDtypeStruct((b, hv, t, d), v.dtype, manual_axis_type=vma)
      for d in (dv, dk)
    ],
    grid=(b, hv, t // step),
    in_specs=[block(dk, hv // hk), block(dv, 1), block(1, 1), block(1, 1)],
    out_specs=[block(dv, 1), block(dk, 1)],
    interpret=interpret,
    name=f"neumann_wy_{chunk_size}",
  )(*heads_first, *gates)
  return jnp.swapaxes(u, 1, 2), jnp.swapaxes(w, 1, 2)


def _kernel(k_ref, v_ref, g_ref, beta_ref, u_ref, w_ref, *, spec, c) -> None:
  k, v, g, beta = (
    x[0, 0].reshape(-1, c, x.shape[-1]) for x in (k_ref, v_ref, g_ref, beta_ref)
  )  # [N, C, D] and [N, C, 1]
  kind = products.kind_of(k)
  row = lax.broadcasted_iota(jnp.int32, (c, c), 0)
  col = lax.broadcasted_iota(jnp.int32, (c, c), 1)
  # Sums of the tokens j < m <= i taken directly: nothing cancels.
  after = jnp.where(row > col, g, 0.0)  # [N, C, C]
  lower = jnp.broadcast_to(jnp.where(row >= col, 1.0, 0.0), after.shape)
  exponent = tpu.multiply(lower, after, "float32")
  gram = tpu.multiply(k, jnp.swapaxes(k, 1, 2), kind)
  a = {(0, 0): beta * gram * jnp.exp(exponent)}
  # Arbitrary above the diagonal, which the body does not read.
  t = methods.invert(a, spec, products.products(spec, tpu.multiply), c)[0, 0]
  enter = jnp.exp(exponent[:, :, :1] + g[:, :1])  # [N, C, 1]
  x = beta * v.astype(jnp.float32)
  y = beta * enter * k.astype(jnp.float32)
  for out_ref, z in ((u_ref, x), (w_ref, y)):
    out = tpu.multiply(t.astype(kind), z.astype(kind), kind)
    out_ref[0, 0] = out.reshape(out_ref.shape[2:]).astype(out_ref.dtype)
