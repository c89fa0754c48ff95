"""Cross-entropy over a large vocabulary without the logits of it.

Logits of 4096 tokens over 248,320 words are 4 GB in float32, and autodiff holds
them more than once. Here the vocabulary is passed over in blocks: the forward
pass keeps a running logarithm of the sum of exponentials, the backward pass
computes each block of logits again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from neumann_jax.model.language_model import LanguageModel

# Logits held at a time are [tokens, BLOCK]: 128 MiB of float32 for 4096 tokens.
BLOCK = 8192


class _Blocks(NamedTuple):
  """How the vocabulary is cut; static.

  Attributes:
    axis: of the vocabulary in the matrix.
    size: words of a block.
    number: of blocks.
    words: V.
  """

  axis: int
  size: int
  number: int
  words: int

  def start(self, index: jax.Array) -> jax.Array:
    """First word of a block; the last block begins early rather than be cut."""
    return jnp.minimum(index * self.size, self.words - self.size)

  def fresh(self, index: jax.Array) -> jax.Array:
    """[size] bool, False at words that the block before had."""
    word = self.start(index) + jnp.arange(self.size, dtype=jnp.int32)
    return word >= index * self.size


def cross_entropy(
  hidden: jax.Array,
  matrix: jax.Array,
  targets: jax.Array,
  *,
  vocab_axis: int = 0,
  block: int = BLOCK,
) -> jax.Array:
  """-log softmax(W h)_target of every token, with a gradient of its own.

  As optax's `softmax_cross_entropy_with_integer_labels` of `W h`, in memory for
  `block` words instead of V, and for one product more in the backward pass.
  Sums are float32 (float64 for float64 operands); with bfloat16 operands the
  gradient's products round softmax - onehot to bfloat16 first.

  Reverse mode only.

  Args:
    hidden: h, [..., D] floating point.
    matrix: W, [V, D] or, with `vocab_axis` 1, [D, V]; cast to hidden's dtype.
    targets: [...] integers in [0, V). A target out of range gives NaN.
    vocab_axis: which axis of the matrix is the vocabulary, 0 or 1.
    block: words whose logits are held at a time, at least 1.

  Returns:
    [...] float32 (float64), in nats.

  Raises:
    TypeError: if the targets or `block` are not integers, or the others not
      floating point.
    ValueError: for shapes that do not fit, or an option out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> from neumann_jax import tuning
    >>> tuning.cross_entropy(
    ...   jnp.zeros((2, 4)), jnp.ones((8, 4)), jnp.array([0, 7])
    ... ).round(4).tolist()
    [2.079400062561035, 2.079400062561035]
  """
  _check(hidden, matrix, targets, vocab_axis, block)
  words = matrix.shape[vocab_axis]
  size = min(block, words)
  blocks = _Blocks(vocab_axis, size, -(-words // size), words)
  return _losses(hidden, matrix, targets, blocks)


def token_losses(
  model: LanguageModel,
  hidden: jax.Array,
  targets: jax.Array,
  *,
  block: int = BLOCK,
) -> jax.Array:
  """`cross_entropy` under a model's output matrix, tied or not.

  Args:
    model: whose `hidden_states` these are.
    hidden: [..., hidden].
    targets: [...] integers in [0, V), the token after each.
    block: words whose logits are held at a time.

  Returns:
    [...] float32, in nats.

  Raises:
    TypeError: as `cross_entropy`.
    ValueError: as `cross_entropy`, and for a quantised output matrix.
  """
  if model.config.tie_word_embeddings:
    matrix, axis = model.embed_tokens.embedding[...], 0
  elif isinstance(model.lm_head, nnx.Linear):
    matrix, axis = model.lm_head.kernel[...], 1
  else:
    raise ValueError("model must have its output matrix as trained")
  return cross_entropy(hidden, matrix, targets, vocab_axis=axis, block=block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _losses(
  hidden: jax.Array, matrix: jax.Array, targets: jax.Array, blocks: _Blocks
) -> jax.Array:
  return _forward(hidden, matrix, targets, blocks)[0]


def _forward(
  hidden: jax.Array, matrix: jax.Array, targets: jax.Array, blocks: _Blocks
) -> tuple[jax.Array, Any]:
  dtype = _sums(hidden)

  def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
    top, total, picked = carry
    logits = _logits(hidden, _part(matrix, blocks, index), blocks)
    logits = jnp.where(blocks.fresh(index), logits, -jnp.inf)  # [..., size]
    new = jnp.maximum(top, jnp.max(logits, axis=-1))
    # A sum that overflows nowhere: it is that of exp(logit - largest so far).
    total = total * jnp.exp(top - new)
    total = total + jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
    place, here = _place(targets, blocks, index)
    found = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    return (new, total, jnp.where(here, found, picked)), None

  shape = targets.shape
  start = (
    jnp.full(shape, -jnp.inf, dtype),
    jnp.zeros(shape, dtype),
    jnp.full(shape, jnp.nan, dtype),
  )
  (top, total, picked), _ = lax.scan(step, start, _indices(blocks))
  normaliser = top + jnp.log(total)  # [...]
  return normaliser - picked, (hidden, matrix, targets, normaliser)


def _backward(
  blocks: _Blocks, kept: Any, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
  hidden, matrix, targets, normaliser = kept
  wide = _sums(hidden)
  # h and W of the product that a block's logits are, by what each sums over.
  to_hidden, to_matrix = (
    ("...v,vd->...d", "...v,...d->vd"),
    ("...v,dv->...d", "...v,...d->dv"),
  )[blocks.axis]

  def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
    of_hidden, of_matrix = carry
    part = _part(matrix, blocks, index).astype(hidden.dtype)
    logits = _logits(hidden, part, blocks)
    # The words of the block before have had their turn.
    share = jnp.exp(logits - normaliser[..., None])
    share = jnp.where(blocks.fresh(index), share, 0)
    place, here = _place(targets, blocks, index)
    words = jnp.arange(blocks.size, dtype=place.dtype)
    one = (words == place[..., None]) & here[..., None]
    turned = (share - one.astype(wide)) * cotangent[..., None]
    turned = turned.astype(hidden.dtype)  # [..., size]
    of_hidden = of_hidden + _product(to_hidden, turned, part, wide)
    new = _product(to_matrix, turned, hidden, wide).astype(matrix.dtype)
    start = blocks.start(index)
    old = lax.dynamic_slice_in_dim(of_matrix, start, blocks.size, blocks.axis)
    of_matrix = lax.dynamic_update_slice_in_dim(
      of_matrix, old + new, start, blocks.axis
    )
    return (of_hidden, of_matrix), None

  start = jnp.zeros(hidden.shape, wide), jnp.zeros_like(matrix)
  (of_hidden, of_matrix), _ = lax.scan(step, start, _indices(blocks))
  return of_hidden.astype(hidden.dtype), of_matrix, None


_losses.defvjp(_forward, _backward)


def _indices(blocks: _Blocks) -> jax.Array:
  return jnp.arange(blocks.number, dtype=jnp.int32)


def _part(matrix: jax.Array, blocks: _Blocks, index: jax.Array) -> jax.Array:
  """The rows, or columns, of a block's words."""
  return lax.dynamic_slice_in_dim(
    matrix, blocks.start(index), blocks.size, blocks.axis
  )


def _logits(hidden: jax.Array, part: jax.Array, blocks: _Blocks) -> jax.Array:
  """[..., size], of one block."""
  letters = "...d,vd->...v" if blocks.axis == 0 else "...d,dv->...v"
  return _product(letters, hidden, part.astype(hidden.dtype), _sums(hidden))


def _product(
  letters: str, x: jax.Array, y: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  # HIGHEST, as in `LanguageModel.logits`: without effect on bfloat16 operands.
  return jnp.einsum(
    letters,
    x,
    y,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=dtype,
  )


def _place(
  targets: jax.Array, blocks: _Blocks, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Where the targets lie in a block, and whether they are new there."""
  first = index * blocks.size
  last = jnp.minimum(first + blocks.size, blocks.words)
  targets = targets.astype(jnp.int32)
  place = jnp.clip(targets - blocks.start(index), 0, blocks.size - 1)
  return place, (targets >= first) & (targets < last)


def _sums(hidden: jax.Array) -> jnp.dtype:
  wide = hidden.dtype == jnp.float64
  return jnp.dtype(jnp.float64 if wide else jnp.float32)


def _check(
  hidden: jax.Array,
  matrix: jax.Array,
  targets: jax.Array,
  vocab_axis: int,
  block: int,
) -> None:
  for name, x in (("hidden", hidden), ("matrix", matrix)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(f"{name} must be floating point, got {x.dtype}")
  if not jnp.issubdtype(targets.dtype, jnp.integer):
    raise TypeError(f"targets must be integers, got {targets.dtype}")
  if vocab_axis not in (0, 1):
    raise ValueError(f"vocab_axis must be 0 or 1, got {vocab_axis}")
  if isinstance(block, bool) or not isinstance(block, int | np.integer):
    raise TypeError(f"block must be an integer, got {block!r}")
  if block < 1:
    raise ValueError(f"block must be at least 1, got {block}")
  if hidden.shape[:-1] != targets.shape:
    raise ValueError(
      f"targets must have the shape of hidden but for its last axis, "
      f"{hidden.shape[:-1]}, got {targets.shape}"
    )
  if matrix.ndim != 2 or matrix.shape[1 - vocab_axis] != hidden.shape[-1]:
    raise ValueError(
      f"matrix must be of two axes, the other of hidden's width "
      f"{hidden.shape[-1]}, got {matrix.shape}"
    )
  if matrix.shape[vocab_axis] < 1:
    raise ValueError(
      f"matrix must have at least one word, got {matrix.shape} with "
      f"vocab_axis {vocab_axis}"
    )
