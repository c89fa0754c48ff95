"""What a record of arrays says of itself: their shapes, not their numbers."""

import dataclasses
import math
from typing import Any

import jax

# Characters of a record within another: a longer one is named alone.
_LONG = 100


def short_repr(record: Any) -> str:
  """`Name(field=...)` of a dataclass instance, in place of Python's own.

  An array is its dtype and shape; a tree of arrays, such as a network's
  parameters, how many numbers they are, and a function its name. A field at its
  default is left out. A record within is a line of its own kind, or its name
  alone where that line is long.

  Args:
    record: a dataclass instance; inside of JAX's transformations its arrays may
      be anything.

  Returns:
    One line.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> pj.priors.gaussian_prior(jnp.ones((8, 8)))
    GaussianPrior(spectrum=float32[8,8], mean=float32[])
  """
  shown = [
    f"{field.name}={_shown(getattr(record, field.name))}"
    for field in dataclasses.fields(record)
    if field.repr and not _is_default(field, getattr(record, field.name))
  ]
  return f"{type(record).__name__}({', '.join(shown)})"


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
  # Of arrays `==` is an array, which is neither true nor false.
  return not _is_array(value) and bool(value == field.default)


def _is_array(value: Any) -> bool:
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _shown(value: Any) -> str:
  if _is_array(value):
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    text = short_repr(value)
    return text if len(text) <= _LONG else f"{type(value).__name__}(...)"
  arrays = [leaf for leaf in jax.tree.leaves(value) if _is_array(leaf)]
  if arrays:
    numbers = sum(math.prod(array.shape) for array in arrays)
    return f"<{numbers} numbers in {len(arrays)} arrays>"
  if callable(value):
    # Of a partial, which may hold arrays, what it is.
    return getattr(value, "__qualname__", type(value).__name__)
  return repr(value)
