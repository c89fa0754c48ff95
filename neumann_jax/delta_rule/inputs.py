"""What the delta rule accepts.

Shapes and types are always checked. Values are checked on concrete arrays
only, with numpy, so that nothing is staged or compiled before the sentence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neumann_jax import checks


class Operands(NamedTuple):
  """The operands of the rule; those of one token have no T axis.

  Attributes:
    q: [B, T, Hk, Dk].
    k: [B, T, Hk, Dk].
    v: [B, T, Hv, Dv].
    log_decay: [B, T, Hv].
    beta: [B, T, Hv].
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  log_decay: jax.Array
  beta: jax.Array


_KEYS, _VALUES, _GATES = ("Hk", "Dk"), ("Hv", "Dv"), ("Hv",)
_AXES = {
  "q": _KEYS,
  "k": _KEYS,
  "v": _VALUES,
  "log_decay": _GATES,
  "beta": _GATES,
}


def check(
  arrays: dict[str, jax.Array],
  *,
  tokens: bool = True,
  state: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  by_document: bool = False,
) -> None:
  """Raises unless the operands fit each other.

  Args:
    arrays: any of q, k, v, log_decay and beta, by name.
    tokens: whether they have the token axis: [B, T, ...], else [B, ...].
    state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.
    by_document: whether each of M documents of a row may have a state of its
      own: [B, M, Hv, Dk, Dv].

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range, or operands on a mesh
      with explicit axes.
  """
  lead = ("B", "T") if tokens else ("B",)
  sizes: dict[str, int] = {}
  for name, array in arrays.items():
    checks.check_floating(name, array)
    _check_axes(name, array, lead + _AXES[name], sizes)
  _check_sizes(sizes)
  if state is not None:
    name = "initial_state" if tokens else "state"
    checks.check_floating(name, state)
    axes: tuple[str, ...] = ("B", "Hv", "Dk", "Dv")
    if tokens and state.ndim == 5:
      _check_by_document(state, segment_ids, by_document)
      axes = ("B", "M", *axes[1:])
    elif by_document and segment_ids is not None:
      _check_one_a_row(state, sizes["B"])
    _check_axes(name, state, axes, sizes)
    _check_sizes(sizes)
  if segment_ids is not None:
    _check_segments(segment_ids, sizes)
  # Last: shapes are cheap, values are read from the device.
  checks.check_gates(arrays["beta"], arrays["log_decay"])
  checks.warn_of_long_keys(arrays["k"], arrays["beta"])


def _check_by_document(
  state: jax.Array, segment_ids: jax.Array | None, by_document: bool
) -> None:
  if segment_ids is None:
    raise ValueError(
      f"initial_state must be [B, Hv, Dk, Dv] without segment_ids, got shape "
      f"{state.shape}: a state for each document needs them"
    )
  if not by_document:
    raise ValueError(
      f"initial_state must be [B, Hv, Dk, Dv] where a mesh axis splits the "
      f"tokens, got shape {state.shape}: a row has one state there"
    )


def _check_one_a_row(state: jax.Array, rows: int) -> None:
  """Beside documents, rows of a state that are not B are one for each."""
  if state.ndim == 4 and state.shape[0] != rows:
    raise ValueError(
      f"initial_state must be [B={rows}, Hv, Dk, Dv], or [B, M, Hv, Dk, Dv] "
      f"with a state for each of up to M documents, got shape {state.shape}"
    )


def of_documents(
  state: jax.Array | None, segment_ids: jax.Array | None
) -> bool:
  """Whether a state is one for each document of packed rows."""
  return state is not None and segment_ids is not None and state.ndim == 5


def check_hidden(
  x: jax.Array,
  hidden_size: int,
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> None:
  """Raises unless x is [B, T >= 1, hidden] and what goes with it [B, T].

  Args:
    x: hidden states, floating point.
    hidden_size: of the layer.
    segment_ids: [B, T] integers or None; its values are checked by `check`.
    mask: [B, T] or None.

  Raises:
    TypeError: if x is not floating point.
    ValueError: for a wrong shape, or segment_ids together with mask.
  """
  checks.check_floating("x", x)
  if x.ndim == 3 and x.shape[0] < 1:
    raise ValueError(f"x must have at least one row, got shape {x.shape}")
  if x.ndim != 3 or x.shape[-1] != hidden_size or x.shape[1] < 1:
    raise ValueError(
      f"x must have shape [B, T >= 1, {hidden_size}], got {x.shape}"
    )
  check_marks(x.shape[:2], segment_ids, mask)


def check_marks(
  shape: tuple[int, ...],
  segment_ids: jax.Array | None,
  mask: jax.Array | None,
) -> None:
  """Raises unless segment_ids or mask, not both, mark tokens of a shape.

  Args:
    shape: [B, T] of the tokens.
    segment_ids: [B, T] integers or None; its values are checked by `check`.
    mask: [B, T] bool or integers, or None.

  Raises:
    TypeError: for a mark of the wrong type.
    ValueError: for a wrong shape, segment_ids together with mask, or padding
      between the tokens of a row.
  """
  if segment_ids is not None and mask is not None:
    raise ValueError(
      "segment_ids and mask exclude each other: give padding a segment of its "
      "own"
    )
  if segment_ids is not None:
    checks.check_integers("segment_ids", segment_ids)
  if mask is not None:
    checks.check_mask("mask", mask)
  for name, array in (("segment_ids", segment_ids), ("mask", mask)):
    if array is not None and array.shape != shape:
      raise ValueError(
        f"{name} must have shape [B, T] = {shape}, got {array.shape}"
      )
  if mask is not None:
    _check_padding(mask)


def segment_starts(segment_ids: jax.Array) -> jax.Array:
  """True where a document other than a row's first begins: [B, T] -> [B, T]."""
  changed = segment_ids[:, 1:] != segment_ids[:, :-1]
  return jnp.pad(changed, [(0, 0), (1, 0)])


def _check_axes(
  name: str,
  array: jax.Array,
  axes: tuple[str, ...],
  sizes: dict[str, int],
) -> None:
  """Compares with the sizes seen so far, and adds the new ones."""
  want = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
  fits = len(array.shape) == len(axes) and all(
    sizes.get(axis, size) == size for axis, size in zip(axes, array.shape)
  )
  if not fits:
    raise ValueError(f"{name} must have shape [{want}], got {array.shape}")
  sizes.update(zip(axes, array.shape))


def _check_sizes(sizes: dict[str, int]) -> None:
  # Before it is compared, which a symbol of `jax.export` may refuse.
  if not isinstance(sizes.get("T", 1), int):
    raise ValueError(
      f"axis T must be a number, as chunks are cut from it, got {sizes['T']}: "
      "the rows alone may be symbolic in jax.export"
    )
  for axis, size in sizes.items():
    if size < 1:
      raise ValueError(f"axis {axis} must have at least one entry, got {size}")
  if sizes["Hv"] % sizes["Hk"]:
    raise ValueError(
      "the value heads must be a whole multiple of the key heads, got "
      f"Hv={sizes['Hv']} and Hk={sizes['Hk']}"
    )


def _check_padding(mask: jax.Array) -> None:
  """Padding stands left of a row's tokens or right of them, not between."""
  if isinstance(mask, jax.core.Tracer):
    return
  # A run begins where 1 follows 0.
  real = np.pad(np.asarray(mask) != 0, [(0, 0), (1, 0)])
  runs = (np.diff(real.astype(np.int8), axis=1) == 1).sum(axis=1)
  row = int(np.argmax(runs))
  if runs[row] > 1:
    raise ValueError(
      "mask must mark one run of tokens in a row, with padding left or right "
      f"of it only, but row {row} has {runs[row]} runs"
    )


def _check_segments(segment_ids: jax.Array, sizes: dict[str, int]) -> None:
  checks.check_integers("segment_ids", segment_ids)
  _check_axes("segment_ids", segment_ids, ("B", "T"), sizes)
  if isinstance(segment_ids, jax.core.Tracer):
    return
  ids = np.asarray(segment_ids)
  # The first tokens of documents, each of which must have an id of its own.
  starts = np.pad(ids[:, 1:] != ids[:, :-1], [(0, 0), (1, 0)])
  starts[:, 0] = True
  for row, (own, first) in enumerate(zip(ids, starts)):
    found, counts = np.unique(own[first], return_counts=True)
    if len(found) > sizes.get("M", len(found)):
      raise ValueError(
        f"segment_ids must have at most M={sizes['M']} documents a row, as "
        f"initial_state has, but row {row} has {len(found)}"
      )
    if (counts > 1).any():
      raise ValueError(
        "segment_ids must give each document of a row an id of its own, but "
        f"row {row} comes back to {found[counts > 1][0]}"
      )
