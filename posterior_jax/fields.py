"""Checks of settings: the fields of a frozen dataclass, each by its name."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal


def check(config: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
  """Refuses a setting of the wrong kind or out of range.

  By a field's type: an `int` must be whole, a `bool` True or False, a
  `Literal` one of its choices, a `float` a number; None where the type allows
  it. A number must lie in its range or, where it has none, be positive and
  finite.

  Args:
    config: a dataclass instance whose annotations are types, not strings.
    ranges: (lowest, highest) allowed, by field name.

  Raises:
    ValueError: naming the first field that is wrong, and what is allowed.
  """
  for field in dataclasses.fields(config):
    # Annotations are types here, since no module postpones their evaluation.
    value, kind = getattr(config, field.name), field.type
    if typing.get_origin(kind) is Literal:
      _check_choice(field.name, value, typing.get_args(kind))
    elif kind is bool:
      if not isinstance(value, bool):
        raise ValueError(f"{field.name} must be True or False, got {value!r}")
    elif kind is int and type(value) is not int:
      raise ValueError(f"{field.name} must be an integer, got {value!r}")
    else:
      optional = type(None) in typing.get_args(kind)
      if not (optional and value is None):
        _check_number(field.name, value, ranges.get(field.name), optional)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(
      f"{name} must be one of {', '.join(choices)}; got {value!r}"
    )


def _check_number(
  name: str, value: Any, limits: tuple[float, float] | None, optional: bool
) -> None:
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
