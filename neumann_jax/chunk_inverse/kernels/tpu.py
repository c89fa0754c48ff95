"""The chunk inverse on a TPU: Pallas through Mosaic.

A grid step holds a block of matrices in vector memory. The ladder without
integers has a kernel of its own, `tpu_ladder`; every other method multiplies
the block as a batch on the matrix unit. The kernels of the whole rule are in
`delta_rule.tpu`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.chunk_inverse import integer, methods
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import products as formats
from neumann_jax.chunk_inverse.kernels import tpu_ladder
from neumann_jax.chunk_inverse.kernels.products import Unit

# Matrices a grid step, at most.
BLOCK = 8
# The same for the ladder, by precision. More groups overlap better: 128 take 10
# to 20 % fewer bundles a matrix than 32 in bfloat16, 5 to 8 % in float32, for
# four times the compilation.
LADDER_BLOCK = {"bfloat16": 128, "float32": 32}
# Kinds since v5e have 64 MiB of vector memory or more; the default limit of
# some is below what the blocks of the ladder need.
VMEM_LIMIT = 50 * 2**20


def refusal(spec: InverseSpec, chunk_size: int) -> str | None:
  """Why the kernel cannot run `spec`, as a clause, or None if it can."""
  reason = methods.refusal(spec, chunk_size)
  if reason is None and spec.precision in ("float16", "tf32"):
    return f"a TPU has no {spec.precision} products, only bfloat16 and float32"
  if reason is not None:
    return reason
  fast = spec.method == "ladder" and spec.quant is None
  block = LADDER_BLOCK[spec.precision] if fast else BLOCK
  # Blocks come and go while others are worked on; rows fill 128 lanes.
  return too_large(4 * block * chunk_size * max(chunk_size, 128) * 4)


def too_large(needed: int) -> str | None:
  """Why blocks of so many bytes do not fit, as a clause, or None if they do.

  They do as far as it is known: for the TPU of this host, or the device of
  `jax.sharding.use_abstract_mesh`. A quarter is left to registers that spill.
  """
  try:
    info = pltpu.get_tpu_info()
  except ValueError:  # the host has none
    return None
  if needed <= min(VMEM_LIMIT, info.vmem_capacity_bytes * 3 // 4):
    return None
  return (
    f"its blocks take {needed / 2**20:.1f} MiB of vector memory, a quarter of "
    f"which is left free, and a TPU {info.chip_version} has "
    f"{info.vmem_capacity_bytes / 2**20:.0f} MiB"
  )


def vmem_limit() -> int:
  """What a kernel asks for: `VMEM_LIMIT`, or all that a small TPU has."""
  try:
    return min(VMEM_LIMIT, pltpu.get_tpu_info().vmem_capacity_bytes)
  except ValueError:
    return VMEM_LIMIT


def invert(
  spec: InverseSpec,
  a: jax.Array,
  bound: jax.Array | None = None,
  *,
  block: int | None = None,
  interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
  """T = (I + A)^-1 as `xla.invert`, in one kernel.

  The ladder without integers inverts its blocks of 16 in float32 whatever the
  precision, so it is closer to the inverse than XLA is.

  Args:
    spec: which method, in which arithmetic, from `inverse_spec.resolve`.
    a: [..., C, C] floating point, C as `refusal` allows; only the strictly
      lower part is read. Types that are not float32 or bfloat16 are converted
      outside the kernel.
    bound: [..., 1, 1] or scalar, the largest entry of the envelope; 1 when
      None.
    block: matrices a grid step; None is the best of those compiled.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    [..., C, C] of a's dtype.
  """
  if a.dtype not in (jnp.float32, jnp.bfloat16):
    wide = invert(
      spec, a.astype(jnp.float32), bound, block=block, interpret=interpret
    )
    return wide.astype(a.dtype)
  lead, c = a.shape[:-2], a.shape[-1]
  a = a.reshape(-1, c, c)
  fast = spec.method == "ladder" and spec.quant is None
  if block is None and fast:
    block = _ladder_block(a.shape[0], LADDER_BLOCK[spec.precision])
  block = min(block or BLOCK, a.shape[0])
  in_specs = [pl.BlockSpec((block, c, c), lambda n: (n, 0, 0))]
  arrays = [a]
  if spec.quant is not None and spec.quant.scale == "envelope":
    scale = integer.fixed_scale(bound, bits=spec.quant.bits)
    arrays.append(jnp.broadcast_to(scale, (*lead, 1, 1)).reshape(-1, 1, 1))
    in_specs.append(pl.BlockSpec((block, 1, 1), lambda n: (n, 0, 0)))
  out = lowering.pallas_call(
    functools.partial(_ladder_kernel if fast else _kernel, spec=spec),
    out_shape=jax.ShapeDtypeStruct(
      a.shape, a.dtype, manual_axis_type=jax.typeof(a).manual_axis_type
    ),
    grid=(pl.cdiv(a.shape[0], block),),
    in_specs=in_specs,
    out_specs=in_specs[0],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",), vmem_limit_bytes=vmem_limit()
    ),
    interpret=interpret,
    name=f"neumann_{spec.method}_{c}",
  )(*arrays)
  return out.reshape(*lead, c, c)


def _ladder_block(batch: int, most: int) -> int:
  """Whole groups a step, steps alike; one small step for a small batch."""
  if batch <= tpu_ladder.GROUP:
    return batch
  groups = pl.cdiv(batch, tpu_ladder.GROUP)
  steps = pl.cdiv(batch, most)
  return pl.cdiv(groups, steps) * tpu_ladder.GROUP


def _kernel(a_ref, *refs, spec: InverseSpec) -> None:
  scale = refs[0][...] if len(refs) == 2 else None
  c = a_ref.shape[-1]
  a = {(0, 0): a_ref[...].astype(jnp.float32)}
  x = methods.invert(a, spec, formats.products(spec, multiply, scale), c)
  refs[-1][...] = x[0, 0].astype(refs[-1].dtype)


def _ladder_kernel(a_ref, out_ref, *, spec: InverseSpec) -> None:
  products = formats.products(spec, multiply)
  tpu_ladder.kernel(a_ref, out_ref, products=products, refine=spec.refine == 1)


def multiply(x: jax.Array, y: jax.Array, kind: Unit) -> jax.Array:
  """x y for matrices or batches of them, on the matrix unit."""
  # Mosaic takes HIGHEST for float32 alone.
  full = kind == "float32"
  return jnp.matmul(
    x,
    y,
    precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
    preferred_element_type=jnp.int32 if kind == "int8" else jnp.float32,
  )
