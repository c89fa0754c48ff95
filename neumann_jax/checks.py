"""Refusals that several functions share, each one sentence.

Types are always checked, values on concrete arrays only and with numpy, so
that nothing is staged or compiled before the sentence.
"""

import jax
import jax.numpy as jnp
import numpy as np


def check_array(name: str, array: jax.Array) -> None:
  """Raises TypeError for what has no dtype and shape."""
  if not hasattr(array, "dtype") or not hasattr(array, "shape"):
    raise TypeError(f"{name} must be an array, got {type(array).__name__}")


def check_floating(name: str, array: jax.Array) -> None:
  """Raises TypeError unless a floating-point array."""
  check_array(name, array)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(f"{name} must be floating point, got dtype {array.dtype}")


def check_integers(name: str, array: jax.Array | np.ndarray) -> None:
  """Raises TypeError unless an integer array."""
  dtype = getattr(array, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
    found = type(array).__name__ if dtype is None else f"dtype {dtype}"
    raise TypeError(f"{name} must be an integer array, got {found}")


def check_mask(name: str, array: jax.Array) -> None:
  """Raises TypeError unless an array of bool or integers."""
  check_array(name, array)
  if array.dtype != bool:
    check_integers(name, array)


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
  _check_range("log_decay", log_decay, -np.inf, 0.0, "be at most 0")


def _check_range(
  name: str, array: jax.Array, low: float, high: float, phrase: str
) -> None:
  if isinstance(array, jax.core.Tracer):
    return
  values = np.asarray(array, np.float64)
  outside = ~((values >= low) & (values <= high))  # NaN is outside
  if outside.any():
    raise ValueError(
      f"{name} must {phrase} everywhere, got {values[outside].flat[0]:g}"
    )
