"""What layers and models carry from one call to the next."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

# Of caches without a limit: numbers of tokens are int32, and the largest of
# them is `positions.PADDING`.
ENDLESS = np.iinfo(np.int32).max - 1


class LayerCache(Protocol):
  """What one mixer carries: a NamedTuple of arrays that lead with B."""

  @property
  def capacity(self) -> int | None:
    """Tokens that a row may have, or None for no limit."""

  def _asdict(self) -> dict[str, jax.Array]:
    """Its arrays by name, as every NamedTuple has it."""


class Cache(NamedTuple):
  """What the block carries from one call to the next.

  Attributes:
    conv_state: [B, 2 Hk Dk + Hv Dv, W], the last W raw columns of q|k|v,
      oldest first, in the activation dtype.
    recurrent_state: [B, Hv, Dk, Dv] float32.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> config = nj.ModelConfig(hidden_size=16)
    >>> layer = nj.GatedDeltaNet(config, rngs=nnx.Rngs(0))
    >>> cache = layer.init_cache(2)
    >>> cache.conv_state.shape, cache.recurrent_state.shape
    ((2, 512, 4), (2, 8, 32, 32))
  """

  conv_state: jax.Array
  recurrent_state: jax.Array

  @property
  def capacity(self) -> None:
    """No limit: the state has one size for any number of tokens."""
    return None


class KeyValueCache(NamedTuple):
  """What full attention carries from one call to the next.

  Slot j of a row holds the row's j-th token, wherever padding stood.

  Attributes:
    keys: [B, S, Hkv, D], rotated, in the activation dtype.
    values: [B, S, Hkv, D].
  """

  keys: jax.Array
  values: jax.Array

  @property
  def capacity(self) -> int:
    """Tokens that a row may have: S."""
    # From the right, for a cache of scanned layers leads with the periods.
    return self.keys.shape[-3]


class ModelCache(NamedTuple):
  """What a model carries from one call to the next.

  Attributes:
    layers: one cache a layer; with scanned layers one for each layer of a
      period, whose arrays lead with the periods.
    stored: [B] int32, tokens of each row so far.
    start: [B] int32, number of the first token of the row's last document.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=4)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> cache = model.init_cache(2, 100)
    >>> cache.capacity, [type(layer).__name__ for layer in cache.layers]
    (100, ['Cache', 'Cache', 'Cache', 'KeyValueCache'])
  """

  layers: tuple[LayerCache, ...]
  stored: jax.Array
  start: jax.Array

  @property
  def capacity(self) -> int:
    """Tokens that a row may have: S, or no limit without full attention."""
    rooms = [layer.capacity for layer in self.layers]
    return min((room for room in rooms if room is not None), default=ENDLESS)


def extended(
  cache: ModelCache, like: ModelCache, *, scanned: bool
) -> ModelCache:
  """A copy of a cache with more room, or of its one row for each of many.

  Args:
    cache: of one row, or of as many as `like`.
    like: a cache of the same model with at least that room; shapes will do.
    scanned: whether the arrays of the layers lead with the periods.
  """
  rows_axis = int(scanned)

  def grown(old: jax.Array, new: jax.ShapeDtypeStruct) -> jax.Array:
    lead = new.shape[: rows_axis + 1]
    old = jnp.broadcast_to(old, lead + old.shape[rows_axis + 1 :])
    # Slots after the last token are empty, and so are the new ones.
    return jnp.pad(old, [(0, m - n) for n, m in zip(old.shape, new.shape)])

  rows = like.stored.shape
  return ModelCache(
    jax.tree.map(grown, cache.layers, like.layers),
    jnp.broadcast_to(cache.stored, rows),
    jnp.broadcast_to(cache.start, rows),
  )


# `jax.export` writes a program with its trees: a served step takes and returns
# caches, which have to have a name outside of Python.
for _kind in (Cache, KeyValueCache, ModelCache):
  jax.export.register_namedtuple_serialization(
    _kind, serialized_name=f"neumann_jax.{_kind.__name__}"
  )


def documents_a_row(
  caches: int, rows: int, segment_ids: jax.Array | None
) -> int | None:
  """Caches that a packed row has, one for each document; None: one a row.

  A cache of a multiple of the rows, at least twice as many, is one by document.

  Args:
    caches: rows of a cache.
    rows: B of the tokens.
    segment_ids: [B, T] or None.

  Raises:
    ValueError: for any other number of caches, where documents are packed.
  """
  if segment_ids is None or caches == rows:
    return None
  if caches % rows:
    raise ValueError(
      f"cache must have {rows} rows, as many as the tokens, or M times {rows} "
      f"for up to M documents a row, got {caches}"
    )
  return caches // rows


def check_room(
  cache: ModelCache,
  shape: tuple[int, ...],
  mask: jax.Array | None,
  segment_ids: jax.Array | None = None,
) -> None:
  """Raises ValueError where tokens do not fit, if all is concrete.

  Args:
    cache: before the tokens, of B rows, or B M.
    shape: [B, T] of the tokens.
    mask: [B, T] bool or integers, nonzero at real tokens, or None.
    segment_ids: [B, T], of at most M documents a row, or None.

  Raises:
    ValueError: also for more documents than the cache has rows for.
  """
  marks = cache.stored, mask, segment_ids
  if any(isinstance(x, jax.core.Tracer) for x in marks):
    return
  # In numpy: the sentence must come before anything is staged or compiled.
  real = np.ones(shape, bool) if mask is None else np.asarray(mask) != 0
  added = real.sum(axis=1)  # [B]
  count = documents_a_row(cache.stored.shape[0], shape[0], segment_ids)
  if count is not None:
    added = _tokens_of_documents(np.asarray(segment_ids), count)
  total = (np.asarray(cache.stored) + added).max()
  if total > cache.capacity:
    raise ValueError(
      f"cache has room for {cache.capacity} tokens a row, but a row would have "
      f"{total}"
    )


def _tokens_of_documents(ids: np.ndarray, count: int) -> np.ndarray:
  """Tokens of each document, [B M]."""
  number = np.cumsum(np.diff(ids, axis=1, prepend=ids[:, :1]) != 0, axis=1)
  found = number.max() + 1
  if found > count:
    raise ValueError(
      f"cache has {count} rows for the documents of a row, but a row has "
      f"{found}"
    )
  return (number[..., None] == np.arange(count)).sum(axis=1).ravel()


def check_model_cache(
  cache: ModelCache, make: Callable[[int], ModelCache]
) -> None:
  """Raises unless a cache is one of a model's, of any capacity.

  Args:
    cache: what was given.
    make: from a capacity, the model's own cache for as many rows.

  Raises:
    TypeError: if it is no cache, or holds one of another kind of layer.
    ValueError: for other numbers of layers or rows, shapes or dtypes.
  """
  if not isinstance(cache, ModelCache):
    raise TypeError(
      f"cache must be a ModelCache of init_cache, got {type(cache).__name__}"
    )
  # Shapes only: nothing is allocated for a comparison.
  like = jax.eval_shape(lambda: make(1))
  if len(cache.layers) != len(like.layers):
    raise ValueError(
      f"cache must have {len(like.layers)} layers, as init_cache makes it, "
      f"got {len(cache.layers)}"
    )
  if cache.stored.shape != like.stored.shape:
    raise ValueError(
      f"cache must have {like.stored.shape[0]} rows, got "
      f"{cache.stored.shape[0]}"
    )
  # Kinds before capacity, which only a cache of the right kind can tell.
  for found, want in zip(cache.layers, like.layers):
    check_kind(found, want)
  like = jax.eval_shape(lambda: make(cache.capacity))
  for found, want in zip(cache.layers, like.layers):
    check_cache(found, want)


def check_cache(cache: LayerCache, like: LayerCache) -> None:
  """Raises unless a layer's cache has the form of another.

  Args:
    cache: what was given.
    like: what `init_cache` gives; shapes and dtypes will do.

  Raises:
    TypeError: if it is of another kind.
    ValueError: for an array of another shape or dtype.
  """
  check_kind(cache, like)
  for name, found in cache._asdict().items():
    want = getattr(like, name)
    if found.shape != want.shape or found.dtype != want.dtype:
      raise ValueError(
        f"cache.{name} must be {want.dtype} of shape {want.shape}, got "
        f"{found.dtype} of shape {found.shape}"
      )


def check_kind(cache: LayerCache, like: LayerCache) -> None:
  """Raises TypeError unless both are caches of one kind of mixer."""
  if type(cache) is not type(like):
    raise TypeError(
      f"cache must be a {type(like).__name__}, got {type(cache).__name__}"
    )
