"""The passes of the rule on a Hopper GPU, a compiled program each.

What every kernel is given, and what `gated_delta_rule` and
`sequence_parallel.hopper_shards` make of what the kernels return: gates in base
2 by head, padding to whole chunks and columns, states turned. A column of zeros
in keys or values stays one in all that is made of it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.chunk_inverse.inverse_spec import InverseSpec
from neumann_jax.delta_rule import layout, precision
from neumann_jax.delta_rule.hopper import gradients, pieces, reverse, scan
from neumann_jax.delta_rule.hopper.tiles import CHUNK, WIDTH
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.kernels import wy_gpu

# dbeta divides by beta; a smaller one writes nothing that bfloat16 adds.
_LEAST_BETA = 2.0**-40


@functools.partial(jax.jit, static_argnums=1)
def inverse(arrays: Operands, spec: InverseSpec) -> jax.Array:
  """R = T - I of every chunk, [B, Hv, N C, C]; `spec` is resolved."""
  _, k, _, log_decay, beta = _padded(arrays)
  return wy_gpu.inverse(k, log_decay, beta, spec=spec, chunk_size=CHUNK)


@jax.jit
def outputs(
  arrays: Operands, scale: jax.Array, state: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The outputs and the final state, from an initial state and R."""
  out, final = _scan(arrays, scale, state, t, pieces.starts)
  return _cut(out, arrays.v), final


@jax.jit
def final_state(
  arrays: Operands, scale: jax.Array, state: jax.Array, t: jax.Array
) -> jax.Array:
  """The final state alone, by the chunks at the end that it depends on."""
  return _scan(arrays, scale, state, t, pieces.to_the_end)[1]


def _scan(arrays, scale, state, t, cut):
  q, k, v, gates, beta, scale = _for_kernels(arrays, scale)
  state_t = _flip(state)
  # The columns of a map of shards are those of keys, its values all 0.
  v = _wide(v, state_t.shape[2])
  cut = cut(gates, v.shape[3] // WIDTH)
  out, final = scan.outputs(q, k, v, t, gates, beta, scale, cut, state_t)
  return out, _unflip(final, state)


@jax.jit
def cotangents(
  arrays: Operands,
  scale: jax.Array,
  state: jax.Array,
  t: jax.Array,
  do: jax.Array,
  dfinal: jax.Array,
) -> tuple[Operands, jax.Array, jax.Array]:
  """Cotangents of the operands, the scale and the initial state."""
  do = _wide(layout.padded(do, CHUNK))
  nonzero = precision.nonzero(scale)
  given = q, k, v, gates, beta, factor = _for_kernels(arrays, nonzero)
  dv, dh, dstate = _reverse(given, t, do, dfinal, pieces.stops)
  cut = pieces.starts(gates, v.shape[3] // WIDTH)
  y, h = scan.states(k, v, t, gates, beta, cut, _flip(state))
  dq, dk, dg, dbeta = gradients.gradients(
    q, k, y, do, dv, gates, beta, factor, h, dh
  )
  dq = _cut(dq, arrays.q)
  # The outputs are linear in q, so that this is <dO, o> as well.
  products = arrays.q.astype(jnp.float32) * dq.astype(jnp.float32)
  dscale = jnp.sum(products) / factor[0]
  dq = precision.of_scaled(dq, scale)
  # A token's gate is in the sum of every later token of its chunk.
  dg = lax.cumsum(dg.reshape(*dg.shape[:2], -1, CHUNK), axis=3, reverse=True)
  dg, dbeta = (jnp.swapaxes(y.reshape(dbeta.shape), 1, 2) for y in (dg, dbeta))
  operands = Operands(dq, dk, dv, dg, dbeta)
  operands = Operands(
    *(_cut(y, x).astype(x.dtype) for x, y in zip(arrays, operands))
  )
  return operands, dscale, dstate


@jax.jit
def initial_cotangent(
  arrays: Operands,
  scale: jax.Array,
  t: jax.Array,
  do: jax.Array,
  dfinal: jax.Array,
) -> jax.Array:
  """Of the initial state alone, by the chunks that depend on it."""
  given = _for_kernels(arrays, precision.nonzero(scale))
  do = _wide(layout.padded(do, CHUNK))
  return _reverse(given, t, do, dfinal, pieces.to_the_start)[2]


def _reverse(given, t, do, dfinal, cut):
  q, k, _, gates, beta, scale = given
  cut = cut(gates, do.shape[3] // WIDTH)
  dv, dh, dstate = reverse.reverse(
    q, k, do, t, gates, beta, scale, cut, _flip(dfinal)
  )
  return dv, dh, _unflip(dstate, dfinal)


def _for_kernels(arrays: Operands, scale: jax.Array) -> tuple[jax.Array, ...]:
  """q, k, v, gates, beta and scale, as every kernel but the inverse's takes."""
  q, k, v, log_decay, beta = _padded(arrays)
  q, k, v = (_wide(x) for x in (q, k, v))
  return q, k, v, _gates(log_decay), _by_head(beta), _one(scale)


def _padded(arrays: Operands) -> Operands:
  """Whole chunks; padding, and a beta of 0, writes next to nothing."""
  padded = Operands(*(layout.padded(x, CHUNK) for x in arrays))
  beta = jnp.maximum(padded.beta.astype(jnp.float32), _LEAST_BETA)
  return padded._replace(beta=beta)


def _gates(log_decay):
  """Base-2 exponents summed within a chunk: [B, T, Hv] -> [B, Hv, T]."""
  x = _by_head(log_decay)
  total = jnp.cumsum(x.reshape(*x.shape[:2], -1, CHUNK), axis=-1)
  return total.reshape(x.shape) * math.log2(math.e)


def _by_head(x):
  return jnp.swapaxes(x.astype(jnp.float32), 1, 2)


def _one(scale):
  """[1] float32."""
  return jnp.reshape(scale, (1,)).astype(jnp.float32)


def _wide(x, least=0):
  """With columns of zeros up to a whole multiple of the kernels' width."""
  width = max(least, x.shape[-1])
  width += -width % WIDTH
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def _cut(x, like):
  """Without the tokens and columns that padding has added."""
  return x[tuple(slice(size) for size in like.shape)]


def _flip(state):
  """[B, Hv, Dk, Dv] as kernels take it, with rows and columns of zeros."""
  wide = jnp.swapaxes(_wide(state), 2, 3)
  return _wide(wide)


def _unflip(state, like):
  return _cut(jnp.swapaxes(state, 2, 3), like)
