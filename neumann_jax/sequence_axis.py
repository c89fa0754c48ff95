"""Tokens split over a mesh axis: where a shard lies and what it is told.

Everything here runs inside `jax.shard_map`, on the tokens of one shard, with
the name of the mesh axis; shards hold equally many consecutive tokens, in the
order of the axis. All is exact and differentiable. `check_vma=True`, the
default of `jax.shard_map`, is the setting to use: it verifies that what leaves
as replicated is, and takes derivatives right wherever `jax.grad` stands.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def local_length(
  length: int,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  axis_name: str,
) -> int:
  """Tokens a shard, to be asked before `jax.shard_map`.

  Args:
    length: T, tokens of the whole sequence.
    mesh: of `jax.shard_map`.
    axis_name: the mesh axis that splits the tokens.

  Raises:
    ValueError: if the mesh has no such axis or would split unevenly.
  """
  if axis_name not in mesh.shape:
    raise ValueError(
      f"axis_name must be one of the mesh axes {', '.join(mesh.shape)}; "
      f"got {axis_name!r}"
    )
  shards = mesh.shape[axis_name]
  if length < 1 or length % shards:
    raise ValueError(
      f"the tokens must be a whole multiple of the {shards} shards of mesh "
      f"axis {axis_name!r}, got {length}: pad them with a segment of its own"
    )
  return length // shards


def axis_size(axis_name: str) -> int:
  """Shards of a mesh axis.

  Raises:
    ValueError: where no enclosing `jax.shard_map` has an axis of this name.
  """
  try:
    return lax.axis_size(axis_name)
  except NameError:
    raise ValueError(
      f"axis {axis_name!r} is unknown here: call this inside jax.shard_map "
      "over a mesh axis of that name"
    ) from None


def check(axis_name: str | None, mask: jax.Array | None) -> None:
  """Raises ValueError for an unknown axis, or a padding mask with an axis."""
  if axis_name is None:
    return
  axis_size(axis_name)
  if mask is not None:
    raise ValueError(
      f"mask cannot be given where mesh axis {axis_name!r} splits the tokens: "
      "give padding a segment of its own"
    )


def token_offset(length: int, axis_name: str) -> jax.Array:
  """Tokens before this shard: the position of its first, a scalar int32.

  Args:
    length: of this shard, as of every one.
    axis_name: the mesh axis that splits the tokens.

  Raises:
    ValueError: if the axis is unknown.
  """
  axis_size(axis_name)
  return lax.axis_index(axis_name) * length


def gather_tokens(x: jax.Array, axis_name: str) -> jax.Array:
  """The tokens of all shards: [B, T / shards, ...] -> [B, T, ...].

  For causal attention: each shard takes its own queries, at positions
  `token_offset` and on, to the keys, values and segment ids of all shards. A
  device then holds T keys and values, and its scores [T / shards, T]; the last
  shard needs all of them, the first wastes most. The gradient of a key is
  summed over the shards and returned to its own.

  Args:
    x: keys, values or segment ids of this shard.
    axis_name: the mesh axis that splits the tokens.

  Raises:
    ValueError: if the axis is unknown.
  """
  axis_size(axis_name)
  return lax.all_gather(x, axis_name, axis=1, tiled=True)


def divisible_heads(x: jax.Array, devices: int) -> jax.Array:
  """Key heads [B, T, Hkv, D], each as often as it takes to divide them.

  Each copy stands with the queries of its own: H, a multiple of both, keeps
  equally many for each head.
  """
  shared = x.shape[2]
  return jnp.repeat(x, math.lcm(shared, devices) // shared, axis=2)


def over_heads(
  attend: Callable[..., jax.Array], axis_name: str
) -> Callable[..., jax.Array]:
  """Attention of the whole row by devices that have all tokens of some heads.

  The shards change their tokens of all heads for all tokens of their heads, and
  back: every device does the same work, at full length, and sends 1 / shards of
  its queries, keys, values and outputs to each other one. In [1] Ulysses.

  Args:
    attend: (q [B, T, H / shards, D], k and v [B, T, Hkv / shards, D], documents
      [B, T] or None) -> [B, T, H / shards, D].
    axis_name: the mesh axis that splits the tokens; its size must divide H.

  Returns:
    The same of [B, T / shards, heads, D] and [B, T / shards]. Key heads that
    the shards do not divide are sent as often as it takes.

  Reference:
    [1] Jacobs et al., DeepSpeed Ulysses, arXiv 2309.14509.
  """

  def change(x: jax.Array, split: int, joined: int) -> jax.Array:
    return lax.all_to_all(x, axis_name, split, joined, tiled=True)

  def call(q, k, v, documents):
    k, v = (divisible_heads(x, axis_size(axis_name)) for x in (k, v))
    if documents is not None:
      documents = gather_tokens(documents, axis_name)
    out = attend(*(change(x, 2, 1) for x in (q, k, v)), documents)
    return change(out, 1, 2)

  return call


def own(of_shards: jax.Array, axis_name: str) -> jax.Array:
  """This shard's entry of [shards, ...]."""
  index = lax.axis_index(axis_name)
  return lax.dynamic_index_in_dim(of_shards, index, keepdims=False)


def from_previous(x: jax.Array, axis_name: str) -> jax.Array:
  """What the shard before holds as x; zeros in the first shard."""
  shards = axis_size(axis_name)
  return lax.ppermute(x, axis_name, [(i, i + 1) for i in range(shards - 1)])


def from_last(x: jax.Array, axis_name: str) -> jax.Array:
  """What the last shard holds as x, the same in all shards."""
  last = lax.axis_index(axis_name) == axis_size(axis_name) - 1
  return lax.psum(jnp.where(last, x, 0), axis_name)


def continues(
  segment_ids: jax.Array | None, batch: int, axis_name: str
) -> jax.Array:
  """Whether the first document of a shard began before it: [B] bool.

  True in the first shard, whose first document the initial state belongs to.

  Args:
    segment_ids: [B, T / shards] integers, or None: one document.
    batch: B.
    axis_name: the mesh axis that splits the tokens.
  """
  if segment_ids is None:
    return jnp.ones(batch, bool)
  before = from_previous(segment_ids[:, -1], axis_name)
  first = lax.axis_index(axis_name) == 0
  return first | (before == segment_ids[:, 0])


def unbroken(same: jax.Array) -> jax.Array:
  """The run of True that each row of [B, W] ends with.

  Args:
    same: whether a token is of the document after it. An id that comes back is
      of another document.
  """
  return lax.cummin(same.astype(jnp.int32), axis=1, reverse=True) > 0


def conv_history(
  x: jax.Array,
  history: jax.Array,
  segment_ids: jax.Array | None,
  axis_name: str,
) -> jax.Array:
  """The columns that `short_conv` of a shard finds before its first token.

  Args:
    x: [B, T / shards, D], raw columns of this shard, at least W of them.
    history: [B, D, W], the columns before the first shard.
    segment_ids: [B, T / shards] integers or None; a column of another document
      than this shard's first counts as 0.
    axis_name: the mesh axis that splits the tokens.

  Returns:
    [B, D, W] in x's dtype.

  Raises:
    ValueError: if the axis is unknown, or a shard is shorter than W.
  """
  width = history.shape[-1]
  if x.shape[1] < width:
    raise ValueError(
      f"a shard must hold at least the {width} tokens of the convolution, got "
      f"{x.shape[1]}: split the tokens over fewer shards"
    )
  columns = from_previous(x[:, -width:], axis_name)  # [B, W, D]
  if segment_ids is not None:
    ids = from_previous(segment_ids[:, -width:], axis_name)
    same = ids == segment_ids[:, :1]
    columns = jnp.where(unbroken(same)[..., None], columns, 0)
  first = lax.axis_index(axis_name) == 0
  return jnp.where(first, history.astype(x.dtype), columns.swapaxes(1, 2))
