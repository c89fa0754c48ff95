"""Fields of settings and arguments, each by its name: checked, and changed."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np


def check(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
  """Refuses a setting of the wrong kind or out of range.

  By a field's type: an `int` must be whole, a `bool` True or False, a
  `Literal` one of its choices, a `float` a number; None, or a tuple of numbers
  as long as the type says, where the type allows it. A number must lie in its
  range or, where it has none, be positive and finite. A field of records, which
  are dataclasses, takes one of them. Numbers and truths of NumPy become
  Python's, so that equal settings are one program.

  Args:
    config: a dataclass instance whose annotations are types, not strings.
    ranges: (lowest, highest) allowed, by field name.

  Raises:
    ValueError: naming the first field that is wrong, and what is allowed.
  """
  for field in dataclasses.fields(config):
    # Annotations are types here, since no module postpones their evaluation.
    value, kind = _plain(getattr(config, field.name)), field.type
    object.__setattr__(config, field.name, value)
    choices = typing.get_args(kind) or (kind,)
    if any(dataclasses.is_dataclass(choice) for choice in choices):
      _check_record(field.name, value, choices)
    elif typing.get_origin(kind) is Literal:
      _check_choice(field.name, value, typing.get_args(kind))
    elif kind is bool:
      if not isinstance(value, bool):
        raise ValueError(f"{field.name} must be True or False, got {value!r}")
    else:
      optional = type(None) in choices
      whole = {int} == {*choices} - {type(None)}
      if whole and type(value) is not int and not (optional and value is None):
        raise ValueError(f"{field.name} must be an integer, got {value!r}")
      if not (optional and value is None):
        for number in _numbers(field.name, value, kind):
          _check_number(field.name, number, ranges.get(field.name), optional)


def _plain(value: Any) -> Any:
  """A number or truth of NumPy, or those of a tuple, as one of Python."""
  if type(value) is tuple:
    return (*map(_plain, value),)
  return value.item() if isinstance(value, np.number | np.bool_) else value


def whole(name: str, value: Any) -> int:
  """An argument that must be an integer of Python or NumPy, or ValueError."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise ValueError(f"{name} must be an integer, got {_shown(value)}")
  return int(value)


def real(name: str, value: Any) -> float:
  """An argument that must be a number of Python or NumPy, or ValueError."""
  number = isinstance(value, int | float | np.integer | np.floating)
  if isinstance(value, bool) or not number:
    raise ValueError(f"{name} must be a number, got {_shown(value)}")
  try:
    return float(value)
  except OverflowError:  # a whole number of more than 308 digits
    raise ValueError(f"{name} must be a finite float64") from None


def _shown(value: Any) -> str:
  """As Python writes it; of an array, which would be a page, its shape."""
  shape = getattr(value, "shape", ())
  return f"an array {tuple(shape)}" if shape else repr(value)


def positive(name: str, value: Any) -> float:
  """An argument that must be a positive, finite number, or ValueError."""
  if not 0 < real(name, value) < math.inf:
    raise ValueError(f"{name} must be positive and finite, got {value}")
  return float(value)


def array(name: str, value: Any) -> np.ndarray:
  """An argument that must be an array of real numbers, or ValueError."""
  found = np.asarray(value)
  # bfloat16, which NumPy has not, is no kind of its.
  real = found.dtype.kind in "biuf" or jnp.issubdtype(found.dtype, jnp.floating)
  if not real:
    shown = repr(value) if found.ndim == 0 else f"one of {found.dtype}"
    raise ValueError(f"{name} must be an array of real numbers, got {shown}")
  return found


def _check_record(name: str, value: Any, choices: tuple[Any, ...]) -> None:
  """A field of records, of which some have a word or None beside them."""
  words: list[str] = []
  for choice in choices:
    if typing.get_origin(choice) is Literal:
      if isinstance(value, str) and value in typing.get_args(choice):
        return
      words += map(repr, typing.get_args(choice))
    elif isinstance(value, choice):
      return
    else:
      words.append("None" if choice is type(None) else choice.__name__)
  raise ValueError(f"{name} must be one of {', '.join(words)}; got {value!r}")


def _numbers(name: str, value: Any, kind: Any) -> tuple[Any, ...]:
  """A number, or those of a tuple where a field's type allows one."""
  if not isinstance(value, tuple):
    return (value,)
  for choice in typing.get_args(kind):
    if typing.get_origin(choice) is tuple:
      count = len(typing.get_args(choice))
      if len(value) != count:
        raise ValueError(
          f"{name} must be a number or {count} of them, got {value!r}"
        )
      return value
  return (value,)


def changed(record: Any, changes: Mapping[str, Any]) -> Any:
  """A record with changes.

  Args:
    record: a dataclass instance.
    changes: values by field; for a field that is a record itself, another one
      or a mapping of changes to it.

  Raises:
    ValueError: for a field that the record does not have, or a mapping where
      there is no record.
  """
  names = [field.name for field in dataclasses.fields(record)]
  made = {}
  for name, value in changes.items():
    if name not in names:
      raise ValueError(
        f"{name} is no field of {type(record).__name__}, which has "
        f"{', '.join(names) or 'none'}"
      )
    old = getattr(record, name)
    if isinstance(value, Mapping):
      if not dataclasses.is_dataclass(old):
        raise ValueError(
          f"{name} is {old!r} here, which has no fields to change; give a "
          "record"
        )
      value = changed(old, value)
    made[name] = value
  return dataclasses.replace(record, **made)


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
  if value not in choices:
    raise ValueError(
      f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}"
    )


def _check_number(
  name: str, value: Any, limits: tuple[float, float] | None, optional: bool
) -> None:
  # A traced number is known only when the program runs: whoever traces it, so
  # that one program serves many values, answers for its range.
  if isinstance(value, jax.core.Tracer):
    return
  otherwise = " or None" if optional else ""
  # A bool is an int to Python, and no number to anyone who set it.
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{name} must be a number{otherwise}, got {value!r}")
  if limits is None:
    if not 0 < value < math.inf:
      raise ValueError(
        f"{name} must be positive and finite{otherwise}, got {value}"
      )
  elif not limits[0] <= value <= limits[1]:
    raise ValueError(
      f"{name} must lie in [{limits[0]:g}, {limits[1]:g}]{otherwise}, got "
      f"{value}"
    )
