"""One token of the gated delta rule on a TPU, for many rows.

Decoding is bound by the states, of which XLA reads each two or three times: for
what it answers to k, for the update and for what it answers to q. Here a state
comes to vector memory once and goes back once, into its own place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import lowering
from neumann_jax.chunk_inverse.kernels import tpu
from neumann_jax.delta_rule.tpu.grid_plan import LANES

# States a grid step, at most, unless a key head has more: 1 MiB of float32,
# whose transfer is long beside what starting a step takes.
_STATES = 16
_ROWS = 8  # of a register


class Plan(NamedTuple):
  """What a grid step holds.

  Attributes:
    rows: of the batch.
    keys: key heads.
    ratio: value heads a key head.
  """

  rows: int
  keys: int
  ratio: int

  @property
  def values(self) -> int:
    """Value heads."""
    return self.keys * self.ratio

  def bytes(self, itemsize: int) -> int:
    """Of the blocks of a grid step.

    Args:
      itemsize: of an entry of a state.
    """
    states = 2 * self.values * LANES * LANES * itemsize
    # q and k, v, decays, beta and outputs, each as whole registers.
    small = (2 * self.keys + 4 * self.values + 5 * _ROWS) * LANES * 4
    # Everything twice: the next step's comes while this one's is worked on.
    return 2 * self.rows * (states + small)


def plan(rows: int, key_heads: int, value_heads: int) -> Plan:
  """Heads of a row, then rows, that fill a grid step.

  Args:
    rows: B.
    key_heads: Hk.
    value_heads: Hv.
  """
  ratio = value_heads // key_heads
  keys = _divisor(key_heads, _STATES // ratio)
  if keys < key_heads:
    return Plan(1, keys, ratio)
  return Plan(_divisor(rows, _STATES // value_heads), keys, ratio)


def _divisor(size: int, most: int) -> int:
  """The largest divisor of a size that is not above `most`, at least 1."""
  return max(n for n in range(1, max(1, most) + 1) if size % n == 0)


def step(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  scale: jax.Array,
  state: jax.Array,
  *,
  interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, jax.Array]:
  """Outputs and the states after the token.

  Args:
    q: [B, Hk, 128].
    k: [B, Hk, 128].
    v: [B, Hv, 128].
    log_decay: [B, Hv].
    beta: [B, Hv].
    scale: of the output, scalar.
    state: [B, Hv, 128, 128] float32 or bfloat16, before the token.
    interpret: True or InterpretParams runs the body on the CPU instead.

  Returns:
    [B, Hv, 128] in v's type, and the state in its own, computed in float32.
  """
  (b, hk, _), hv = k.shape, v.shape[1]
  how = plan(b, hk, hv)
  groups = hk // how.keys

  def by_group(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).reshape(b, groups, -1, LANES)

  def in_lanes(x: jax.Array) -> jax.Array:
    return by_group(jnp.broadcast_to(x[..., None], (b, hv, LANES)))

  # Whole registers of q and k, which the kernel turns.
  reads = jnp.concatenate([by_group(q) * scale, by_group(k)], 2)
  spare = -reads.shape[2] % _ROWS
  reads = jnp.pad(reads, [(0, 0), (0, 0), (0, spare), (0, 0)])
  decay = in_lanes(jnp.exp(log_decay.astype(jnp.float32)))
  states = pl.BlockSpec(
    (how.rows, how.values, LANES, LANES), lambda b, h: (b, h, 0, 0)
  )

  def block(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((how.rows, 1, *x.shape[2:]), lambda b, h: (b, h, 0, 0))

  values = by_group(v)
  kind = jax.typeof(state).manual_axis_type
  out, state = lowering.pallas_call(
    functools.partial(_kernel, how=how),
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=kind)
      for x in (values, state)
    ],
    grid=(b // how.rows, groups),
    in_specs=[block(reads), *[block(values)] * 3, states],
    out_specs=[block(values), states],
    input_output_aliases={4: 1},
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel"),
      vmem_limit_bytes=tpu.vmem_limit(),
    ),
    interpret=interpret,
    name="neumann_rule_token",
  )(reads, values, decay, in_lanes(beta), state)
  return out.reshape(v.shape).astype(v.dtype), state


def _kernel(
  reads_ref,
  v_ref,
  decay_ref,
  beta_ref,
  state_ref,
  out_ref,
  final_ref,
  *,
  how: Plan,
) -> None:
  for row in range(how.rows):
    columns = reads_ref[row, 0].T  # [Dk, q and k of all key heads]
    for head in range(how.values):
      key = head // how.ratio
      q, k = (columns[:, at : at + 1] for at in (key, how.keys + key))
      at = (row, 0, slice(head, head + 1))  # [1, Dv]
      # On the vector unit: a matrix unit would take each state as weights, in
      # three parts, for two rows.
      state = decay_ref[at] * state_ref[row, head].astype(jnp.float32)
      read = jnp.sum(k * state, axis=0, keepdims=True)
      state = state + k * (beta_ref[at] * (v_ref[at] - read))
      out_ref[at] = jnp.sum(q * state, axis=0, keepdims=True)
      final_ref[row, head] = state.astype(final_ref.dtype)
