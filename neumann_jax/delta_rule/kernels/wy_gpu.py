"""u = T (beta v) and w = T (beta exp(G) k) of a chunk in one GPU kernel.

A and T never reach memory: one warp builds A from keys and gates, inverts it in
registers and multiplies. Keys are read once and stay in shared memory; values
are read in slices of columns in a loop that Triton pipelines, so that a warp
does not wait for memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neumann_jax import lowering
from neumann_jax.chunk_inverse import methods, tiles
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.chunk_inverse.kernels import gpu, products
from neumann_jax.chunk_inverse.tiles import Tiles

TILE = 16
# Columns of k or v in a slice: the fastest measured at width 128. A kernel that
# reads k alone is faster with all of them at once.
_COLUMNS = 64
# Below, a row of T - I may have entries that float16 holds with fewer digits.
_SMALL_BETA = 2.0**-7


def refusal(
  spec: InverseSpec,
  chunk_size: int,
  dtype: jnp.dtype,
  widths: tuple[int, int],
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can."""
  if chunk_size not in (16, 32, 64):
    return f"chunk size {chunk_size} is not one of 16, 32 and 64"
  if products.operand_kind(spec) == "int8":
    return "16-wide tiles are too narrow for int8 products"
  if dtype == jnp.float64:
    return "float64 operands have no kernel"
  if any(width < 16 or width & (width - 1) for width in widths):
    return f"Dk and Dv must be powers of two from 16 up, got {widths}"
  return gpu.refusal(spec, chunk_size)


def wy(
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  spec: InverseSpec,
  chunk_size: int,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """The WY representation of every chunk.

  Args:
    k: [B, T, Hk, Dk], T a multiple of the chunk size.
    v: [B, T, Hv, Dv] of k's type.
    log_decay: [B, T, Hv], finite, >= -104.
    beta: [B, T, Hv].
    spec: a resolved spec.
    chunk_size: C.
    interpret: runs the body on the CPU instead.

  Returns:
    u [B, T, Hv, Dv] and w [B, T, Hv, Dk] in v's type.
  """
  b, t, hk, dk = k.shape
  hv, dv = v.shape[2:]
  arrays = (k, v, beta.astype(jnp.float32), _prefix(log_decay))

  def block(width: int, heads: int) -> pl.BlockSpec:
    return pl.BlockSpec(
      (1, chunk_size, 1, width), lambda h, n, b: (b, n, lax.div(h, heads), 0)
    )

  gate = pl.BlockSpec((1, chunk_size, 1), lambda h, n, b: (b, n, h))
  vma = jax.typeof(k).manual_axis_type
  return lowering.pallas_call(
    functools.partial(_kernel, spec=spec, interpret=interpret),
    out_shape=[
      jax.ShapeDtypeStruct((b, t, hv, d), v.dtype, manual_axis_type=vma)
      for d in (dv, dk)
    ],
    grid=(hv, t // chunk_size, b),
    in_specs=[block(dk, hv // hk), block(dv, 1), gate, gate],
    out_specs=[block(dv, 1), block(dk, 1)],
    compiler_params=triton.CompilerParams(num_warps=1, num_stages=2),
    interpret=interpret,
    name=f"neumann_wy_{chunk_size}",
  )(*arrays)


def inverse(
  k: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  *,
  spec: InverseSpec,
  chunk_size: int,
  interpret: bool = False,
) -> jax.Array:
  """T - I of every chunk, for kernels that multiply by it themselves.

  With A = beta M that is -beta M T as well, which has the digits of rows that
  a small beta pushes below float16's, but more rounding in all others.

  Args:
    k: [B, T, Hk, Dk], T a multiple of the chunk size.
    log_decay: [B, T, Hv], finite, >= -104.
    beta: [B, T, Hv].
    spec: a resolved spec.
    chunk_size: C.
    interpret: runs the body on the CPU instead.

  Returns:
    [B, Hv, T, C] in k's type, strictly lower triangular.
  """
  b, t, hk, dk = k.shape
  hv = beta.shape[2]
  arrays = (k, beta.astype(jnp.float32), _prefix(log_decay))
  gate = pl.BlockSpec((1, chunk_size, 1), lambda h, n, b: (b, n, h))
  keys = pl.BlockSpec(
    (1, chunk_size, 1, dk), lambda h, n, b: (b, n, lax.div(h, hv // hk), 0)
  )
  out = pl.BlockSpec(
    (1, 1, chunk_size, chunk_size), lambda h, n, b: (b, h, n, 0)
  )
  vma = jax.typeof(k).manual_axis_type
  return lowering.pallas_call(
    functools.partial(_inverse_kernel, spec=spec, interpret=interpret),
    out_shape=jax.ShapeDtypeStruct(
      (b, hv, t, chunk_size), k.dtype, manual_axis_type=vma
    ),
    grid=(hv, t // chunk_size, b),
    in_specs=[keys, gate, gate],
    out_specs=out,
    compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
    interpret=interpret,
    name=f"neumann_inverse_of_keys_{chunk_size}",
  )(*arrays)


def _prefix(log_decay: jax.Array) -> jax.Array:
  """Base-2 exponents summed within a tile.

  exp2 is one instruction, and a sum over a whole chunk would lose digits after
  a token that forgets.
  """
  b, t, hv = log_decay.shape
  gates = log_decay.astype(jnp.float32).reshape(b, -1, TILE, hv)
  return jnp.cumsum(gates, axis=2).reshape(b, t, hv) * math.log2(math.e)


def _inverse_kernel(k_ref, beta_ref, prefix_ref, out_ref, *, spec, interpret):
  rows, _, _, gram, beta, gates = _keys_and_gates(
    k_ref, beta_ref, prefix_ref, interpret, k_ref.shape[-1]
  )
  unit = functools.partial(gpu.multiply, interpret=interpret)
  by = products.products(spec, unit)
  one = [jnp.ones((TILE,), jnp.float32)] * len(rows)
  m = tiles.keep(_matrix(gram, one, *gates), lambda row, col: row > col)
  a = {(i, j): x * beta[i][:, None] for (i, j), x in m.items()}
  t = methods.invert(a, spec, by, k_ref.shape[1])
  below = tiles.keep(t, lambda row, col: row > col)

  def with_product():
    product = by.operand(m, t)
    small = [x[:, None] < _SMALL_BETA for x in beta]
    return {
      (i, j): jnp.where(small[i], -beta[i][:, None] * product[i, j], x)
      for (i, j), x in below.items()
    }

  least = functools.reduce(jnp.minimum, [jnp.min(x) for x in beta])
  out = lax.cond(least < _SMALL_BETA, with_product, lambda: below)
  zero = jnp.zeros((TILE, TILE), out_ref.dtype)
  for i, at in enumerate(rows):
    for j, columns in enumerate(rows):
      tile = out[i, j].astype(out_ref.dtype) if (i, j) in out else zero
      out_ref[0, 0, at, columns] = tile


def _keys_and_gates(k_ref, beta_ref, prefix_ref, interpret, width=_COLUMNS):
  """Rows of tiles, columns of keys, k, k k^T, beta and (prefix, total)."""
  rows = [pl.ds(i * TILE, TILE) for i in range(k_ref.shape[1] // TILE)]
  beta = [beta_ref[0, at, 0] for at in rows]
  prefix = [prefix_ref[0, at, 0] for at in rows]
  total = [prefix_ref[0, at.start + TILE - 1, 0] for at in rows]
  width = min(width, k_ref.shape[-1])
  slices = [pl.ds(at, width) for at in range(0, k_ref.shape[-1], width)]
  k = [_read(k_ref, rows, columns) for columns in slices]
  gram = _gram(k, functools.partial(gpu.multiply, interpret=interpret))
  return rows, slices, k, gram, beta, (prefix, total)


def _kernel(
  k_ref, v_ref, beta_ref, prefix_ref, u_ref, w_ref, *, spec, interpret
):
  rows, slices, k, gram, beta, (prefix, total) = _keys_and_gates(
    k_ref, beta_ref, prefix_ref, interpret
  )
  unit = functools.partial(gpu.multiply, interpret=interpret)
  a = _matrix(gram, beta, prefix, total)
  t = methods.invert(a, spec, products.products(spec, unit), k_ref.shape[1])
  # Prefixes begin anew in every tile: what whole tiles before it decay by is
  # added here.
  enter, before = [], jnp.float32(0)
  for x, y in zip(prefix, total):
    enter.append(jnp.exp2(x + before))
    before = before + y
  scaled = _scaled(t, [x * y for x, y in zip(beta, enter)], k_ref.dtype)
  for x, columns in zip(k, slices):
    _write(w_ref, rows, columns, scaled, x, unit)
  scaled = _scaled(t, beta, v_ref.dtype)
  width = min(_COLUMNS, v_ref.shape[-1])

  def step(n: jax.Array, carry: None) -> None:
    columns = pl.ds(n * width, width)
    _write(u_ref, rows, columns, scaled, _read(v_ref, rows, columns), unit)
    return carry

  lax.fori_loop(0, v_ref.shape[-1] // width, step, None)


def _read(ref, rows, columns) -> list[jax.Array]:
  """A slice of columns, a tile row [16, width] each."""
  return [ref[0, at, 0, columns] for at in rows]


def _gram(k: list[list[jax.Array]], unit) -> Tiles:
  """k k^T of keys in slices of columns, [16, 16] each; its lower tiles."""
  gram: Tiles = {}
  for x in k:
    for i, left in enumerate(x):
      for j, right in enumerate(x[: i + 1]):
        part = unit(left, right.T, products.kind_of(left))
        gram[i, j] = gram[i, j] + part if (i, j) in gram else part
  return gram


def _matrix(gram: Tiles, beta, prefix, total) -> Tiles:
  """A_ij = beta_i <k_i, k_j> 2^(G_i - G_j); arbitrary above its diagonal."""
  a: Tiles = {}
  row = [x * jnp.exp2(y) for x, y in zip(beta, prefix)]
  for (i, j), tile in gram.items():
    if i == j:
      decay = jnp.exp2(prefix[i][:, None] - prefix[i][None, :])
      a[i, j] = tile * decay * beta[i][:, None]
    else:
      # Exponents of different tiles only ever add: nothing cancels.
      rest = total[j] - prefix[j] + sum(total[j + 1 : i], jnp.float32(0))
      a[i, j] = tile * row[i][:, None] * jnp.exp2(rest)[None, :]
  return a


def _scaled(t: Tiles, scale, dtype) -> Tiles:
  """T diag(scale), rounded to the type of what it multiplies."""
  return {
    (i, j): (x * scale[j][None, :]).astype(dtype) for (i, j), x in t.items()
  }


def _write(out_ref, rows, columns, t: Tiles, x: list[jax.Array], unit) -> None:
  """out = t x for a slice of columns."""
  kind = products.kind_of(x[0])
  for i, at in enumerate(rows):
    out = unit(t[i, 0], x[0], kind)
    for j in range(1, i + 1):
      out = out + unit(t[i, j], x[j], kind)
    out_ref[0, at, 0, columns] = out.astype(out_ref.dtype)
