"""Prompts of a batch: what is accepted, and how they become one array."""

from collections.abc import Sequence

import jax
import numpy as np

from neumann_jax import checks

Prompt = Sequence[int] | np.ndarray | jax.Array


def check_prompts(
  prompts: Sequence[Prompt], vocab_size: int, *, name: str = "prompts"
) -> list[np.ndarray]:
  """The prompts as arrays.

  Args:
    prompts: B sequences of integers.
    vocab_size: V.
    name: what a message calls them.

  Returns:
    B arrays, int32, of one token at least each.

  Raises:
    TypeError: if a token is no integer.
    ValueError: if there is no prompt, one is empty or no sequence, or a token
      is not in [0, V).
  """
  if len(prompts) == 0:
    raise ValueError(f"{name} must hold at least one prompt, got none")
  return [
    _check_prompt(f"{name}[{i}]", row, vocab_size)
    for i, row in enumerate(prompts)
  ]


def _check_prompt(name: str, prompt: Prompt, vocab_size: int) -> np.ndarray:
  row = np.asarray(prompt)
  if row.ndim == 1 and not row.size:
    raise ValueError(f"{name} must have at least one token, got none")
  checks.check_integers(name, row)
  if row.ndim != 1:
    raise ValueError(
      f"{name} must be a sequence of tokens, got shape {row.shape}"
    )
  outside = (row < 0) | (row >= vocab_size)
  if outside.any():
    raise ValueError(
      f"{name} must lie in [0, {vocab_size}), got {row[outside][0]}"
    )
  return row.astype(np.int32)


# Widths of pieces, whole multiples of the usual chunk_size: two programs read
# any prompt, a long one at the speed of its matrices and a turn of a chat
# without 500 tokens of padding.
_WIDE, _NARROW = 512, 64


def widths(longest: int, piece: int | None) -> list[int]:
  """Pieces that hold a prompt.

  Args:
    longest: tokens of the longest prompt, at least 1.
    piece: tokens of every piece, at least 1; None: _WIDE ones and then up to
      four _NARROW ones.
  """
  if piece is not None:
    return [piece] * -(-longest // piece)
  wide, rest = divmod(longest, _WIDE)
  narrow = -(-rest // _NARROW)
  # Half of a wide piece in narrow ones costs more launches than padding.
  if narrow > _WIDE // _NARROW // 2:
    wide, narrow = wide + 1, 0
  return [_WIDE] * wide + [_NARROW] * narrow


def padded(
  rows: Sequence[np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of any length, padded on the right.

  Args:
    rows: B arrays of tokens.
    width: T, at least that of the longest.

  Returns:
    Tokens [B, T] int32, 0 at padding, and the mask [B, T], True at tokens.
  """
  lengths = np.array([len(row) for row in rows])  # [B]
  # On the right: a row's tokens then stand at the places that they have alone.
  tokens = np.zeros((len(rows), width), np.int32)  # [B, T]
  for place, row in zip(tokens, rows):
    place[: len(row)] = row
  return tokens, np.arange(width) < lengths[:, None]
