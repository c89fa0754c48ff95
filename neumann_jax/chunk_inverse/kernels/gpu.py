"""The chunk inverse on an NVIDIA GPU: Pallas through Triton, in this file only.

One program inverts one matrix, cut into tiles; those above the diagonal are
never read. One warp with 16-wide tiles is fastest up to C = 64. int8 products
contract 32 entries at least and C = 128 does not fit the registers of a warp:
both take 32-wide tiles and four warps. The banded form that masks every step
has no zero tiles to skip, and its thirty products of small tiles take minutes
to compile: it runs on whole matrices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering
from neumann_jax.chunk_inverse import integer, methods
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import products
from neumann_jax.chunk_inverse.kernels.products import Unit
from neumann_jax.chunk_inverse.tiles import Tiles


def refusal(spec: InverseSpec, chunk_size: int) -> str | None:
  """Why the kernel cannot run `spec`, as a clause, or None if it can."""
  reason = methods.refusal(spec, chunk_size)
  if (
    reason is None and products.operand_kind(spec) == "int8" and chunk_size < 32
  ):
    return "int8 products on a GPU need a chunk size of at least 32, got 16"
  return reason


def invert(
  spec: InverseSpec,
  a: jax.Array,
  bound: jax.Array | None = None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """T = (I + A)^-1 as `xla.invert`, in one kernel.

  Args:
    spec: which method, in which arithmetic, from `inverse_spec.resolve`.
    a: [..., C, C] float32, bfloat16 or float16, C as `refusal` allows; only
      the strictly lower part is read.
    bound: [..., 1, 1] or scalar, the largest entry of the envelope; 1 when
      None.
    interpret: runs the body on the CPU instead, exactly rounded.

  Returns:
    [..., C, C] of a's dtype. Float32 products are taken in three tf32 parts.
  """
  lead, c = a.shape[:-2], a.shape[-1]
  a = a.reshape(-1, c, c)
  whole = pl.BlockSpec((1, c, c), lambda n: (n, 0, 0))
  arrays, in_specs = [a], [whole]
  if spec.quant is not None and spec.quant.scale == "envelope":
    scale = integer.fixed_scale(bound, bits=spec.quant.bits)
    arrays.append(jnp.broadcast_to(scale, (*lead, 1, 1)).reshape(-1))
    in_specs.append(pl.BlockSpec((1,), lambda n: (n,)))
  out = lowering.pallas_call(
    functools.partial(_kernel, spec=spec, interpret=interpret),
    out_shape=jax.ShapeDtypeStruct(
      a.shape, a.dtype, manual_axis_type=jax.typeof(a).manual_axis_type
    ),
    grid=(a.shape[0],),
    in_specs=in_specs,
    out_specs=whole,
    compiler_params=triton.CompilerParams(
      # One load of a matrix: there is no loop to pipeline.
      num_warps=_launch(spec, c)[1],
      num_stages=1,
    ),
    interpret=interpret,
    name=f"neumann_{spec.method}_{c}",
  )(*arrays)
  return out.reshape(*lead, c, c)


def _launch(spec: InverseSpec, c: int) -> tuple[int, int]:
  """Width of a tile and warps a program: the fastest of those measured."""
  if spec.mask_every_step:
    return min(c, 64), 4  # no zero tiles to skip: see above
  wide = c == 128 or products.operand_kind(spec) == "int8"
  return (32, 4) if wide else (16, 1)


def _kernel(a_ref, *refs, spec: InverseSpec, interpret: bool) -> None:
  # The scale comes in only where the envelope fixes it.
  scale = refs[0][0] if len(refs) == 2 else None
  out_ref = refs[-1]
  c = a_ref.shape[-1]
  t = _launch(spec, c)[0]
  at = [pl.ds(i * t, t) for i in range(c // t)]
  a: Tiles = {
    (i, j): a_ref[0, at[i], at[j]].astype(jnp.float32)
    for i in range(c // t)
    for j in range(i + 1)
  }
  unit = functools.partial(multiply, interpret=interpret)
  x = methods.invert(a, spec, products.products(spec, unit, scale), c)
  # Every tile is written, the zero ones too: the output is not initialised.
  zero = jnp.zeros((t, t), jnp.float32)
  for i, rows in enumerate(at):
    for j, cols in enumerate(at):
      out_ref[0, rows, cols] = x.get((i, j), zero).astype(out_ref.dtype)


def multiply(
  x: jax.Array, y: jax.Array, kind: Unit, *, interpret: bool
) -> jax.Array:
  """x y on the tensor cores, or what they compute in interpret mode.

  `precision=HIGHEST` would leave the tensor cores, a hundred times slower:
  float32 operands are multiplied in three tf32 products.
  """
  precision: lax.PrecisionLike = lax.Precision.DEFAULT
  if kind == "float32":
    precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  if interpret:
    # A CPU would multiply tf32 operands, held in float32, without rounding.
    precision = lax.Precision.HIGHEST
    if kind == "tf32":
      x, y = (lax.reduce_precision(z, 8, 10) for z in (x, y))
  return lax.dot_general(
    x,
    y,
    (((1,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.int32 if kind == "int8" else jnp.float32,
  )
