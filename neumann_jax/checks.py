"""Refusals that several functions share, each one sentence.

Types are always checked, values on concrete arrays only and with numpy, so
that nothing is staged or compiled before the sentence.
"""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding

# Entries of keys that are looked at on the host.
_FEW = 2**22


def plain_numbers(settings: Any) -> None:
  """Turns what NumPy has of numbers and truths into Python's, in tuples too.

  Settings that are equal must hash alike, and a sweep over `np.arange` sets
  what a sweep over `range` does.

  Args:
    settings: a frozen dataclass's instance, in its `__post_init__`.
  """
  for field in dataclasses.fields(settings):
    value = _plain(getattr(settings, field.name))
    object.__setattr__(settings, field.name, value)


def _plain(value: Any) -> Any:
  if type(value) is tuple:
    return (*map(_plain, value),)
  return value.item() if isinstance(value, np.number | np.bool_) else value


def check_array(name: str, array: jax.Array | np.ndarray) -> None:
  """Raises TypeError for what has no dtype and shape."""
  if not hasattr(array, "dtype") or not hasattr(array, "shape"):
    raise TypeError(f"{name} must be an array, got {type(array).__name__}")
  # A value knows where it lies, a tracer what its type says.
  where = getattr(array, "sharding", None)
  if isinstance(array, jax.core.Tracer):
    where = jax.typeof(array).sharding
  if isinstance(where, NamedSharding):
    check_mesh(name, where.mesh)


def check_mesh(name: str, mesh: Mesh | AbstractMesh) -> None:
  """Raises ValueError for a mesh with explicit axes, as `jax.make_mesh` has.

  Args:
    name: of what lives on it, or is to.
    mesh: which.
  """
  for axis, kind in zip(mesh.axis_names, mesh.axis_types):
    if kind == AxisType.Explicit:
      raise ValueError(
        f"the mesh of {name} must leave shardings to the compiler, but its "
        f"axis {axis!r} is explicit: make it by neumann_jax.sharding.make_mesh "
        "or give jax.make_mesh axis_types of jax.sharding.AxisType.Auto"
      )


def check_floating(name: str, array: jax.Array) -> None:
  """Raises TypeError unless a floating-point array."""
  check_array(name, array)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating point, got dtype {array.dtype}")


def floating_dtype(name: str, value: Any) -> np.dtype:
  """A dtype by any of its names, or ValueError unless of floating point."""
  try:
    # NumPy takes None for float64.
    dtype = None if value is None else jnp.dtype(value)
  except TypeError:
    dtype = None
  if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
    found = repr(value) if dtype is None else dtype
    raise ValueError(f"{name} must be floating point, got {found!s:.100}")
  return dtype


def check_number(name: str, value: Any) -> None:
  """Raises unless a real number, or an array that is one."""
  if dtype := getattr(value, "dtype", None):
    real = any(jnp.issubdtype(dtype, x) for x in (jnp.floating, jnp.integer))
  else:
    real = isinstance(value, float | int) and not isinstance(value, bool)
  if not real:
    raise TypeError(f"{name} must be a real number, got {value!r:.100}")
  if shape := jnp.shape(value):
    raise ValueError(f"{name} must be one number, got shape {shape}")


def check_integers(name: str, array: jax.Array | np.ndarray) -> None:
  """Raises TypeError unless an integer array."""
  dtype = getattr(array, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
    found = type(array).__name__ if dtype is None else f"dtype {dtype}"
    raise TypeError(f"{name} must be an integer array, got {found}")
  check_array(name, array)


def check_mask(name: str, array: jax.Array) -> None:
  """Raises TypeError unless an array of bool or integers."""
  check_array(name, array)
  # Of floats 0 and -inf are as usual, and mean the reverse.
  if array.dtype != bool and not jnp.issubdtype(array.dtype, jnp.integer):
    raise TypeError(
      f"{name} must be an array of bool or integers, nonzero at real tokens, "
      f"got dtype {array.dtype}"
    )


def check_tokens(tokens: jax.Array, vocab_size: int) -> None:
  """Raises unless tokens are [B >= 1, T >= 1] integers in [0, vocab_size)."""
  check_integers("tokens", tokens)
  if tokens.ndim != 2 or 0 in tokens.shape:
    raise ValueError(
      f"tokens must have shape [B >= 1, T >= 1], got {tokens.shape}"
    )
  if isinstance(tokens, jax.core.Tracer):
    return
  values = np.asarray(tokens)
  outside = (values < 0) | (values >= vocab_size)
  if outside.any():
    raise ValueError(
      f"tokens must lie in [0, {vocab_size}), got {values[outside].flat[0]}"
    )


def check_gates(beta: jax.Array, log_decay: jax.Array) -> None:
  """Raises ValueError unless beta is in [0, 2] and log_decay at most 0."""
  _check_range("beta", beta, 0.0, 2.0, "lie in [0, 2]")
  check_log_decay(log_decay)


def check_log_decay(log_decay: jax.Array) -> None:
  """Raises ValueError unless it is at most 0."""
  _check_range("log_decay", log_decay, -np.inf, 0.0, "be at most 0")


def warn_of_long_keys(k: jax.Array, beta: jax.Array) -> None:
  """Warns of concrete keys under which the state of the delta rule can grow.

  I - beta k k^t is a contraction for beta |k|^2 <= 2 alone.

  Args:
    k: [..., Hk, Dk].
    beta: [..., Hv].
  """
  if isinstance(k, jax.core.Tracer) or isinstance(beta, jax.core.Tracer):
    return
  # Few numbers are read in less time than it takes to compile.
  measure = _largest_step if k.size <= _FEW else jax.jit(_largest_step)
  # Keys that are known within a trace are measured now, not staged.
  with jax.ensure_compile_time_eval():
    largest = float(measure(k, beta))
  # Unit keys that are rounded to bfloat16 reach 2.016.
  if largest > 2.05:
    warnings.warn(
      f"k is not normalised: beta |k|^2 reaches {largest:.3g}, and above 2 the "
      "state can grow from token to token until it overflows; divide each key "
      "by its norm",
      stacklevel=2,
    )


def _largest_step(k: jax.Array, beta: jax.Array) -> jax.Array | np.floating:
  """The largest finite beta |k|^2, in numpy unless it is traced."""
  xp = jnp if isinstance(k, jax.core.Tracer) else np
  k, beta = (xp.asarray(x).astype(np.float32) for x in (k, beta))
  # What is not finite need not be told that it is long.
  with np.errstate(over="ignore", invalid="ignore"):
    square = xp.square(k).sum(axis=-1)  # [..., Hk]
    step = xp.repeat(square, beta.shape[-1] // k.shape[-2], axis=-1) * beta
  return xp.where(xp.isfinite(step), step, 0).max()


def _check_range(
  name: str, array: jax.Array, low: float, high: float, phrase: str
) -> None:
  if isinstance(array, jax.core.Tracer):
    return
  values = np.asarray(array, np.float64)
  outside = (values < low) | (values > high)
  if np.isnan(values).any():
    raise ValueError(f"{name} must {phrase} everywhere, but it contains NaN")
  if outside.any():
    raise ValueError(
      f"{name} must {phrase} everywhere, got {values[outside].flat[0]:g}"
    )
