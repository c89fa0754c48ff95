"""The gated norm of heads on a TPU, and its gradient, in one pass each.

XLA takes the mean over a head by other tiles than what surrounds it, and
writes the outputs of the rule in float32 in between. Here the lanes of a
register are a head. With r = 1 / rms(x), n = r x, w the weight:

  y = w n silu(z),  dz = dy w n silu'(z),  dn = dy w silu(z),
  dx = r (dn - n mean(n dn)),  dw = sum dy n silu(z).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.layers.kernels import conv_tpu
from neumann_jax.layers.kernels.conv_tpu import LANES, shaped

_ROWS = 8


def forward(
  x: jax.Array,
  z: jax.Array,
  weight: jax.Array,
  *,
  eps: float,
  interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
  """`norms.gated_rms_norm` of heads side by side.

  Args:
    x: [B, T, heads 128] bfloat16 or float32.
    z: [B, T, heads 128] of x's type.
    weight: [128] of x's type.
    eps: added to the mean square.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    [B, T, heads 128] of x's type.
  """
  grid, tokens, one = _blocks(x)
  return lowering.pallas_call(
    functools.partial(_kernel, eps=eps),
    out_shape=shaped(x, x.shape, x.dtype),
    grid=grid,
    in_specs=[tokens, tokens, one],
    out_specs=tokens,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel")
    ),
    interpret=interpret,
    name="neumann_norm_forward",
  )(x, z, _row(weight))


def gradients(
  x: jax.Array,
  z: jax.Array,
  weight: jax.Array,
  cotangent: jax.Array,
  *,
  eps: float,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Cotangents of x, z and the weight, the last [128] in float32.

  Args:
    x: as of `forward`, like all others but one; T a multiple of the tokens of
      a block.
    z: likewise.
    weight: likewise.
    cotangent: [B, T, heads 128] of x's type.
    eps: likewise.
    interpret: likewise.
  """
  grid, tokens, one = _blocks(x)
  b, length, width = x.shape
  count = conv_tpu.block(length, 0, width // LANES)[1]
  like = shaped(x, x.shape, x.dtype)
  d_x, d_z, sums = lowering.pallas_call(
    functools.partial(_gradient_kernel, eps=eps),
    out_shape=[like, like, shaped(x, (b, _ROWS, width), jnp.float32)],
    grid=grid,
    in_specs=[tokens, tokens, one, tokens],
    out_specs=[
      tokens,
      tokens,
      pl.BlockSpec((1, _ROWS, count * LANES), lambda b, h, n: (b, 0, h)),
    ],
    # Gradients take the place of what they are of, block by block.
    input_output_aliases={0: 0, 1: 1},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    interpret=interpret,
    name="neumann_norm_backward",
  )(x, z, _row(weight), cotangent)
  return d_x, d_z, jnp.sum(sums.reshape(-1, LANES), axis=0)


def _row(weight: jax.Array) -> jax.Array:
  return weight[None].astype(jnp.float32)


def _blocks(x: jax.Array) -> tuple[tuple, pl.BlockSpec, pl.BlockSpec]:
  """The grid, the block of tokens of some heads, and that of the weight."""
  b, length, width = x.shape
  heads = width // LANES
  tokens, count = conv_tpu.block(length, 0, heads)
  shape = (1, tokens, count * LANES)
  return (
    (b, heads // count, pl.cdiv(length, tokens)),
    pl.BlockSpec(shape, lambda b, h, n: (b, n, h)),
    pl.BlockSpec((1, LANES), lambda b, h, n: (0, 0)),
  )


def _heads(ref) -> list[slice]:
  return [slice(at, at + LANES) for at in range(0, ref.shape[-1], LANES)]


def _normed(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
  """x / rms(x) and 1 / rms(x)."""
  scale = lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
  return x * scale, scale


def _kernel(x_ref, z_ref, weight_ref, out_ref, *, eps: float) -> None:
  for at in _heads(x_ref):
    normed, _ = _normed(x_ref[0, :, at].astype(jnp.float32), eps)
    scaled = _rounded(weight_ref[...] * _rounded(normed, out_ref), out_ref)
    z = z_ref[0, :, at].astype(jnp.float32)
    out = scaled * (z * jax.nn.sigmoid(z))
    out_ref[0, :, at] = out.astype(out_ref.dtype)


def _rounded(x: jax.Array, like) -> jax.Array:
  """Through the type of the activations, where XLA's form goes through it."""
  return x.astype(like.dtype).astype(jnp.float32)


def _gradient_kernel(
  x_ref,
  z_ref,
  weight_ref,
  cotangent_ref,
  d_x_ref,
  d_z_ref,
  sums_ref,
  *,
  eps: float,
) -> None:
  @pl.when(pl.program_id(2) == 0)
  def _enter():
    sums_ref[...] = jnp.zeros_like(sums_ref)

  for at in _heads(x_ref):
    normed, scale = _normed(x_ref[0, :, at].astype(jnp.float32), eps)
    z, d_out = (
      ref[0, :, at].astype(jnp.float32) for ref in (z_ref, cotangent_ref)
    )
    gate = jax.nn.sigmoid(z)
    d_scaled = d_out * (z * gate)
    rows = (d_scaled * normed).reshape(-1, _ROWS, LANES)
    sums_ref[0, :, at] += jnp.sum(rows, axis=0)
    d_gate = d_out * (weight_ref[...] * normed)
    d_z = d_gate * gate * (1.0 + z * (1.0 - gate))
    d_z_ref[0, :, at] = d_z.astype(d_z_ref.dtype)
    d_normed = d_scaled * weight_ref[...]
    along = jnp.mean(normed * d_normed, axis=-1, keepdims=True)
    d_x = scale * (d_normed - normed * along)
    d_x_ref[0, :, at] = d_x.astype(d_x_ref.dtype)
