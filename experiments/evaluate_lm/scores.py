"""A text in windows, and what a language model makes of every token."""

import functools
import pathlib
import sysconfig
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from experiments.data.text_tokens import Tokenizer

BLOCK = 128  # tokens whose logits are held at a time
# What is read where no text is named.
FILES = ("argparse.py", "difflib.py", "heapq.py", "textwrap.py")


class Text(NamedTuple):
  """A text as tokens.

  Attributes:
    name: of its file.
    tokens: [n] int32.
    bytes: of these tokens, as UTF-8.
  """

  name: str
  tokens: np.ndarray
  bytes: int


class Windows(NamedTuple):
  """Independent windows of a text, padded on the right.

  Attributes:
    tokens: [N, W] int32; 0 at padding.
    mask: [N, W] bool, True at tokens of the text.
  """

  tokens: np.ndarray
  mask: np.ndarray


class Scores(NamedTuple):
  """Of the tokens of a batch that have one before them in their window.

  Attributes:
    tokens: how many.
    loss: sum of their negative log-likelihoods, in nats.
    divergence: sum of the Kullback-Leibler divergences KL(reference || model)
      of the predictions, in nats.
    largest: the largest of them.
  """

  tokens: jax.Array
  loss: jax.Array
  divergence: jax.Array
  largest: jax.Array


class TokenScores(NamedTuple):
  """Of the prediction of every token but the first of its row, [B, W - 1].

  Attributes:
    loss: negative log-likelihood, in nats.
    divergence: KL(reference || model), in nats.
    correct: whether the likeliest token is the one that comes.
  """

  loss: jax.Array
  divergence: jax.Array
  correct: jax.Array


def read_text(path: str, tokenizer: Tokenizer, max_tokens: int) -> Text:
  """The first tokens of a text.

  Args:
    path: of a UTF-8 file; "" means sources of the Python standard library.
    tokenizer: of the model.
    max_tokens: how many at most; 0 means all.

  Raises:
    ValueError: if the file is missing, is not UTF-8, or has fewer than two
      tokens.
  """
  if path:
    name = pathlib.Path(path).name
    words = _read(path)
  else:
    name = f"{', '.join(FILES)} of the Python standard library"
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    words = "".join(_read(str(folder / file)) for file in FILES)
  tokens = tokenizer.encode(words)
  if len(tokens) < 2:
    raise ValueError(f"text must have at least 2 tokens, got {len(tokens)}")
  size = len(words.encode())
  if max_tokens and max_tokens < len(tokens):
    tokens = tokens[:max_tokens]
    size = max_tokens
    if tokenizer.name != "bytes":
      size = len(tokenizer.decode(tokens).encode())
  return Text(name, tokens, size)


def _read(path: str) -> str:
  try:
    return pathlib.Path(path).read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"text {path!r} names no readable file") from error
  except UnicodeDecodeError as error:
    raise ValueError(f"text {path!r} is not UTF-8") from error


def windows(text: Text, width: int) -> Windows:
  """Cuts a text into windows of `width` tokens that see nothing of each other.

  A last window of a single token, which predicts nothing, is left out.
  """
  tokens = text.tokens
  if len(tokens) % width == 1:
    tokens = tokens[:-1]
  pad = -len(tokens) % width
  mask = np.arange(len(tokens) + pad) < len(tokens)
  tokens = np.pad(tokens, (0, pad)).astype(np.int32)
  return Windows(tokens.reshape(-1, width), mask.reshape(-1, width))


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
  """What the output matrix reads, [B, W, hidden]: prefill without a cache."""
  return nnx.merge(graph, state).hidden_states(tokens, mask=mask)[0]


@functools.partial(jax.jit, static_argnums=0)
def scores(
  graph: nnx.GraphDef,
  state: nnx.State,
  hidden: jax.Array,
  reference: jax.Array,
  tokens: jax.Array,
  mask: jax.Array,
) -> Scores:
  """Judges the predictions of a batch.

  Args:
    graph: of the model.
    state: of the model.
    hidden: [B, W, hidden], of the model.
    reference: [B, W, hidden], of the one it is compared with, which has the
      same output matrix.
    tokens: [B, W].
    mask: [B, W].
  """
  found = token_scores(graph, state, hidden, reference, tokens)
  real = mask[:, 1:]
  loss, divergence = (jnp.where(real, x, 0) for x in found[:2])
  return Scores(
    jnp.sum(real), jnp.sum(loss), jnp.sum(divergence), jnp.max(divergence)
  )


@functools.partial(jax.jit, static_argnums=0)
def token_scores(
  graph: nnx.GraphDef,
  state: nnx.State,
  hidden: jax.Array,
  reference: jax.Array,
  tokens: jax.Array,
) -> TokenScores:
  """Judges every prediction, BLOCK tokens of a row at a time; see `scores`."""
  model = nnx.merge(graph, state)

  def judge(block):
    hidden, reference, target = block
    found = jax.nn.log_softmax(model.logits(hidden))
    truth = jax.nn.log_softmax(model.logits(reference))
    picked = jnp.take_along_axis(found, target[..., None], axis=-1)[..., 0]
    return TokenScores(
      -picked,
      jnp.sum(jnp.exp(truth) * (truth - found), axis=-1),
      jnp.argmax(found, axis=-1) == target,
    )

  parts = hidden[:, :-1], reference[:, :-1], tokens[:, 1:]
  blocks = jax.tree.map(_blocks, parts)  # [N, B, BLOCK, ...] each
  width = tokens.shape[1] - 1
  return jax.tree.map(lambda x: _joined(x)[:, :width], lax.map(judge, blocks))


def _blocks(x: jax.Array) -> jax.Array:
  """[B, T, ...] -> [N, B, BLOCK, ...], T padded with zeros."""
  size = min(BLOCK, x.shape[1])
  x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
  return jnp.swapaxes(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 0, 1)


def _joined(x: jax.Array) -> jax.Array:
  """[N, B, BLOCK] -> [B, N BLOCK]."""
  return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
