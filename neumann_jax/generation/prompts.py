"""Prompts of a batch: what is accepted, and how they become one array."""

from collections.abc import Sequence

import jax
import numpy as np

from neumann_jax import checks

Prompt = Sequence[int] | np.ndarray | jax.Array


def check_prompts(
  prompts: Sequence[Prompt], vocab_size: int
) -> list[np.ndarray]:
  """The prompts as arrays.

  Args:
    prompts: B sequences of integers.
    vocab_size: V.

  Returns:
    B arrays, int32, of one token at least each.

  Raises:
    TypeError: if a token is no integer.
    ValueError: if there is no prompt, one is empty or no sequence, or a token
      is not in [0, V).
  """
  if len(prompts) == 0:
    raise ValueError("prompts must hold at least one prompt, got none")
  return [_check_prompt(i, row, vocab_size) for i, row in enumerate(prompts)]


def _check_prompt(index: int, prompt: Prompt, vocab_size: int) -> np.ndarray:
  name = f"prompts[{index}]"
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


def padded(
  rows: Sequence[np.ndarray], piece: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of any length, padded on the right to whole pieces.

  Args:
    rows: B arrays of tokens.
    piece: tokens of a piece, at least 1, or None for one piece.

  Returns:
    Tokens [B, T] int32, 0 at padding, and the mask [B, T], True at tokens.
  """
  lengths = np.array([len(row) for row in rows])  # [B]
  longest = lengths.max()
  # Whole pieces have one shape, and so one program.
  width = longest if piece is None else longest + -longest % piece
  # On the right: a row's tokens then stand at the places that they have alone.
  tokens = np.zeros((len(rows), width), np.int32)  # [B, T]
  for place, row in zip(tokens, rows):
    place[: len(row)] = row
  return tokens, np.arange(width) < lengths[:, None]
