"""A sequence cut into chunks, and put together again.

Arrays of chunks lead with [N, B, Hk, R, C]: the scan runs over N, and the R
value heads that read one key head stay together, so that products of keys are
taken once and broadcast, never repeated. Padding is inert: keys of zeros,
beta 0, decay 1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax.delta_rule import inputs, precision

T = TypeVar("T")


class Chunks(NamedTuple):
  """The operands of the rule by chunks, in the types they are computed in.

  Attributes:
    q: [N, B, Hk, C, Dk], or None where only u and w are wanted.
    k: [N, B, Hk, C, Dk].
    v: [N, B, Hk, R, C, Dv].
    log_decay: [N, B, Hk, R, C], 32 bits or more, like beta.
    beta: [N, B, Hk, R, C].
    documents: [N, B, 1, 1, C] int32, or None: one.
  """

  q: jax.Array | None
  k: jax.Array
  v: jax.Array
  log_decay: jax.Array
  beta: jax.Array
  documents: jax.Array | None


def split(
  q: jax.Array | None,
  k: jax.Array,
  v: jax.Array,
  log_decay: jax.Array,
  beta: jax.Array,
  segment_ids: jax.Array | None,
  *,
  chunk_size: int,
  dtype: jnp.dtype,
) -> Chunks:
  """Cuts the operands of the rule into chunks, q scaled or left out before.

  Args:
    q: [B, T, Hk, Dk] or None.
    k: [B, T, Hk, Dk].
    v: [B, T, Hv, Dv].
    log_decay: [B, T, Hv].
    beta: [B, T, Hv].
    segment_ids: [B, T] or None.
    chunk_size: C.
    dtype: of q, k and v, from `precision.product_dtype`.
  """
  heads, wide = k.shape[2], precision.compute_dtype(v)
  log_decay, beta = (
    split_gates(x.astype(wide), chunk_size, heads) for x in (log_decay, beta)
  )  # [N, B, Hk, R, C]
  return Chunks(
    None if q is None else split_keys(q.astype(dtype), chunk_size),
    split_keys(k.astype(dtype), chunk_size),
    split_values(v.astype(dtype), chunk_size, heads),
    log_decay,
    beta,
    split_documents(segment_ids, chunk_size),
  )


def numbers(segment_ids: jax.Array) -> jax.Array:
  """Documents of each row by their order, 0, 1, ...: [B, T] int32."""
  starts = inputs.segment_starts(jnp.asarray(segment_ids))
  return jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def split_documents(
  segment_ids: jax.Array | None, chunk_size: int
) -> jax.Array | None:
  """Numbers documents 0, 1, ... a row: [B, T] -> [N, B, 1, 1, C] int32."""
  if segment_ids is None:
    return None
  number = numbers(segment_ids)  # [B, T]
  # Padding continues the last document.
  pad = -number.shape[1] % chunk_size
  number = jnp.pad(number, [(0, 0), (0, pad)], mode="edge")
  return _split(number, chunk_size)[:, :, None, None, :]


def split_keys(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, Hk, Dk] -> [N, B, Hk, C, Dk], padded with zeros."""
  return jnp.swapaxes(_split(x, chunk_size), 2, 3)


def split_values(x: jax.Array, chunk_size: int, key_heads: int) -> jax.Array:
  """[B, T, Hv, Dv] -> [N, B, Hk, R, C, Dv], padded with zeros."""
  b, t, hv, dv = x.shape
  x = x.reshape(b, t, key_heads, hv // key_heads, dv)
  # [N, B, C, Hk, R, Dv] before
  return jnp.moveaxis(_split(x, chunk_size), 2, 4)


def split_gates(x: jax.Array, chunk_size: int, key_heads: int) -> jax.Array:
  """[B, T, Hv] -> [N, B, Hk, R, C], padded with zeros: inert tokens."""
  return split_values(x[..., None], chunk_size, key_heads)[..., 0]


def merge_keys(x: jax.Array) -> jax.Array:
  """[N, B, Hk, C, Dk] -> [B, N C, Hk, Dk]."""
  return merge_values(x[:, :, :, None])


def merge_values(x: jax.Array) -> jax.Array:
  """[N, B, Hk, R, C, Dv] -> [B, N C, Hv, Dv]: `split_values`, padding left."""
  n, b, hk, r, c, dv = x.shape
  x = jnp.transpose(x, (1, 0, 4, 2, 3, 5))  # [B, N, C, Hk, R, Dv]
  return x.reshape(b, n * c, hk * r, dv)


def merge_gates(x: jax.Array) -> jax.Array:
  """[N, B, Hk, R, C] -> [B, N C, Hv]."""
  return merge_values(x[..., None])[..., 0]


def by_head(x: jax.Array) -> jax.Array:
  """[N, B, Hk, R, ...] -> [B, Hv, N, ...]."""
  x = jnp.moveaxis(x, 0, 3)  # [B, Hk, R, N, ...]
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def padded(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, ...], T padded with zeros to a multiple of C."""
  pad = -x.shape[1] % chunk_size
  return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))


def grouped_state(
  state: jax.Array | None, k: jax.Array, v: jax.Array, *others: jax.Array
) -> jax.Array:
  """[B, Hv, Dk, Dv] or None (zero) -> [B, Hk, R, Dk, Dv], 32 bits or more.

  Under `jax.shard_map` a scan asks that a state vary over the mesh axes over
  which k, v and the others do, even if it starts the same everywhere.
  """
  (hk, dk), (hv, dv) = k.shape[-2:], v.shape[-2:]
  shape = (v.shape[0], hk, hv // hk, dk, dv)
  dtype = precision.compute_dtype(v)
  if state is None:
    state = jnp.zeros(shape, dtype)
  return varying_as(state.astype(dtype).reshape(shape), (k, v, *others))


def varying_as(x: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
  """x, marked as varying over every mesh axis over which an array does."""
  # Joined over all of them: one operand that is the same on every device must
  # not make a state that the scan then finds to vary.
  axes = [jax.typeof(a).manual_axis_type.varying for a in (x, *arrays)]
  missing = frozenset().union(*axes[1:]) - axes[0]
  return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def varying_alike(tree: T) -> T:
  """A tree of arrays, each marked as varying over what any of them does.

  Under `jax.shard_map` cotangents must vary as what they belong to does.
  """
  leaves = jax.tree.leaves(tree)
  return jax.tree.map(lambda x: varying_as(x, leaves), tree)


def gives_varying(form: Callable[..., T]) -> Callable[..., T]:
  """A form whose results are marked as varying as its arguments do.

  Under `jax.shard_map` what a kernel gives must say so.
  """

  def marked(*args):
    leaves = jax.tree.leaves(args)
    return jax.tree.map(lambda x: varying_as(x, leaves), form(*args))

  return marked


def flat_state(state: jax.Array) -> jax.Array:
  """[B, Hk, R, Dk, Dv] -> [B, Hv, Dk, Dv]."""
  return state.reshape(state.shape[0], -1, *state.shape[3:])


def _split(x: jax.Array, chunk_size: int) -> jax.Array:
  """[B, T, ...] -> [N, B, C, ...], T padded with zeros to a multiple of C."""
  x = padded(x, chunk_size)
  x = x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
  return jnp.swapaxes(x, 0, 1)
