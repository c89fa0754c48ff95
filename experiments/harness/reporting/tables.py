"""Rows as pandas frames, and frames as plain text.

A frame is one table, whether a report shows it, a program prints it or a
figure plots it. A missing number is NaN, shown as "-".
"""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

# How JSON lines spell the numbers that JSON has none for.
_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
Digits = int | Mapping[Any, int] | None


def frame(rows: Iterable[Any]) -> pd.DataFrame:
  """A frame with a column of floats wherever rows have numbers or none.

  Args:
    rows: NamedTuples or mappings of the same fields, or JSON's form of them:
      "inf", "-inf" and "nan" become numbers again.
  """
  found = pd.DataFrame([dict(as_mapping(row)) for row in rows])
  for name in found.columns:
    column = found[name]
    if pd.api.types.is_numeric_dtype(column):
      continue
    numbers = column.map(
      lambda x: _WORDS.get(x, x) if isinstance(x, str) else x
    )
    if all(x is None or _is_number(x) for x in numbers) and not column.empty:
      found[name] = numbers.astype(float)
  return found


def as_mapping(row: Any) -> Mapping[str, Any]:
  """A row's fields by name."""
  return row._asdict() if hasattr(row, "_asdict") else row


def columns(table: pd.DataFrame) -> dict[str, list[Any]]:
  """What a table shows, by heading: the named levels of its index first."""
  named = [level for level in table.index.names if level is not None]
  whole = table.reset_index(named) if named else table
  return {str(name): list(whole[name]) for name in whole.columns}


def aligned(table: pd.DataFrame, digits: Digits = None) -> str:
  """The table as lines of text, the first and the last column to the left.

  Args:
    table: its named index and its columns are shown.
    digits: decimals of every column, or by column; None: two significant ones.
  """
  found = columns(table)
  lines = [
    [name, *(words(value, digits_of(digits, name)) for value in values)]
    for name, values in found.items()
  ]
  padded = []
  for i, column in enumerate(lines):
    width = max(map(len, column))
    left = i in (0, len(lines) - 1)
    padded.append([x.ljust(width) if left else x.rjust(width) for x in column])
  return "\n".join("  ".join(line).rstrip() for line in zip(*padded))


def digits_of(digits: Digits, name: str) -> int | None:
  """The decimals of a column."""
  return digits.get(name) if isinstance(digits, Mapping) else digits


def words(value: Any, digits: int | None = None) -> str:
  """A value as a table shows it.

  Args:
    value: text, a number, or "-" for None and NaN.
    digits: decimals after the point; None: two significant digits. Integers
      are counts, which have none.
  """
  if missing(value):
    return "-"
  if not _is_number(value) or isinstance(value, numbers.Integral):
    return str(value)
  number = float(value)
  if digits is not None and math.isfinite(number):
    return f"{number:.{digits}f}"
  return short(number)


def short(value: float) -> str:
  """A number to two significant digits, in powers of ten where it is far."""
  if math.isnan(value):
    return "nan"
  if math.isinf(value):
    return "overflow" if value > 0 else "-inf"
  if value == 0 or 1e-2 <= abs(value) < 1e4:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
  return (
    f"{value:.1e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
  )


def missing(value: Any) -> bool:
  """Whether there is no value."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(value: Any) -> bool:
  return not isinstance(value, str | bool) and hasattr(value, "__float__")
