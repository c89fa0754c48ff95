"""What the delta rule accepts, and in which form it computes.

Shapes and types are always checked. Values are checked on concrete arrays
only, with numpy, so that nothing is staged or compiled before the sentence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from neumann_jax import checks


class Operands(NamedTuple):
  """The operands of the rule; one token has no T axis.

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
) -> None:
  """Raises unless the operands fit each other.

  Args:
    arrays: any of q, k, v, log_decay and beta, by name.
    tokens: whether they have the token axis: [B, T, ...], else [B, ...].
    state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.

  Raises:
    TypeError: for an operand of the wrong type.
    ValueError: for a shape or a value out of range.
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
    _check_axes(name, state, ("B", "Hv", "Dk", "Dv"), sizes)
  if segment_ids is not None:
    _check_segments(segment_ids, sizes)
  checks.check_gates(arrays["beta"], arrays["log_decay"])


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


def compute_dtype(x: jax.Array) -> jnp.dtype:
  """float64 stays; everything narrower is computed in float32."""
  wide = jax.dtypes.canonicalize_dtype(x.dtype) == jnp.float64
  return jnp.dtype(jnp.float64 if wide else jnp.float32)


def product_dtype(v: jax.Array, *others: jax.Array) -> jnp.dtype:
  """What the chunk-wise rule rounds the operands of a product to.

  bfloat16 or float16 where v and the others all have that type, else what
  `compute_dtype` gives for v.
  """
  same = all(x.dtype == v.dtype for x in others)
  return v.dtype if same and is_narrow(v.dtype) else compute_dtype(v)


def is_narrow(dtype: DTypeLike) -> bool:
  """Whether a type has 16 bits, as matrix units multiply them."""
  return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def einsum(
  subscripts: str, x: jax.Array, y: jax.Array, dtype: DTypeLike
) -> jax.Array:
  """A product of the chunk-wise rule: its one policy of types.

  Args:
    subscripts: as `jnp.einsum`.
    x: left operand.
    y: right operand.
    dtype: from `product_dtype`; both operands are rounded to it.

  Returns:
    Sums in float32 of 16-bit operands as they are; float32 and float64 at
    highest precision, in their own type.
  """
  narrow = is_narrow(dtype)
  return jnp.einsum(
    subscripts,
    x.astype(dtype),
    y.astype(dtype),
    precision=lax.Precision.DEFAULT if narrow else lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32 if narrow else dtype,
  )


def output_scale(scale: float | None, q: jax.Array) -> float:
  """The factor on the output: Dk^-0.5 unless given."""
  return q.shape[-1] ** -0.5 if scale is None else scale


def widened(arrays: Operands, scale: jax.Array) -> Operands:
  """The operands in v's dtype of computation, with q scaled."""
  dtype = compute_dtype(arrays.v)
  wide = Operands(*(x.astype(dtype) for x in arrays))
  return wide._replace(q=wide.q * jnp.asarray(scale, dtype))


def grouped_state(
  state: jax.Array | None, k: jax.Array, v: jax.Array, *others: jax.Array
) -> jax.Array:
  """[B, Hv, Dk, Dv] or None (zero) -> [B, Hk, R, Dk, Dv], 32 bits or more.

  Under `jax.shard_map` a scan asks that a state vary over the mesh axes over
  which k, v and the others do, even if it starts the same everywhere.
  """
  (hk, dk), (hv, dv) = k.shape[-2:], v.shape[-2:]
  shape = (v.shape[0], hk, hv // hk, dk, dv)
  dtype = compute_dtype(v)
  if state is None:
    state = jnp.zeros(shape, dtype)
  return varying_as(state.astype(dtype).reshape(shape), (k, v, *others))


def varying_as(x: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
  """x, marked as varying over every mesh axis over which an array does."""
  axes = [jax.typeof(a).manual_axis_type.varying for a in (x, *arrays)]
  missing = frozenset().union(*axes[1:]) - axes[0]
  return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def flat_state(state: jax.Array) -> jax.Array:
  """[B, Hk, R, Dk, Dv] -> [B, Hv, Dk, Dv]."""
  return state.reshape(state.shape[0], -1, *state.shape[3:])


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
  if (np.diff(np.asarray(segment_ids), axis=-1) < 0).any():
    raise ValueError(
      "segment_ids must not decrease along a row: number the documents in "
      "order, padding included"
    )
