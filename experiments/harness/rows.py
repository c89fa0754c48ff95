"""One table of a run: rows as they come, and in the end what made of them."""

import csv
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness import writing
from experiments.harness.reporting import tables


class Table:
  """One table on disk: JSON lines appended row by row, in the end as CSV too.

  The first row fixes the columns. Opening a table that exists goes on with it;
  half a line left by a run that was killed is dropped first.
  """

  def __init__(self, stem: pathlib.Path):
    """Opens `stem.jsonl`, making it where it is not."""
    self._stem = stem
    self._lines = writing.Lines(stem.with_suffix(".jsonl"))
    found = self.rows()
    self._columns = list(found[0]) if found else None
    # By a key's columns, their entries in the rows that are there.
    self._known: dict[tuple[str, ...], set[tuple]] = {}

  def write(self, row: Mapping[str, Any] | tuple) -> None:
    """Appends one row of strings, numbers, booleans or None.

    Infinite and undefined numbers become the strings "inf", "-inf" and "nan",
    which strict JSON readers accept and `float` parses.

    Args:
      row: a value for every column, as a NamedTuple or a mapping.

    Raises:
      ValueError: the columns are not those of the first row.
      Unwritable: the rows before stay.
    """
    row = tables.as_mapping(row)
    self._columns = self._columns or list(row)
    if list(row) != self._columns:
      raise ValueError(
        f"row has columns {list(row)}, but the table has {self._columns}"
      )
    plain = {name: _plain(value) for name, value in row.items()}
    self._lines.append(json.dumps(plain, allow_nan=False))
    for key, known in self._known.items():
      known.add(_entries(plain, key))

  def write_once(self, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """`write`, where no row has the same entries in the columns of the key."""
    key = tuple(key)
    if key not in self._known:
      self._known[key] = {_entries(row, key) for row in self.rows()}
    if _entries(row, key) not in self._known[key]:
      self.write(row)

  def rows(self) -> list[dict[str, Any]]:
    """All rows so far, as JSON holds them.

    Raises:
      Refused: a line is none of this table.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(self._lines.read(), 1):
      try:
        row = json.loads(line)
        if list(row) != list((found or [row])[0]):
          raise ValueError("other columns")
      except (ValueError, TypeError, RecursionError) as error:
        file = str(self._stem.with_suffix(".jsonl"))
        raise writing.Refused(
          f"line {number} of {file!r} is damaged: remove it to have it written "
          "again"
        ) from error
      found.append(row)
    return found

  def close(self) -> None:
    """Closes the file and writes `stem.csv` from it."""
    rows = self.rows()
    self._lines.close()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, self._columns or [], lineterminator="\n")
    if rows:
      writer.writeheader()
    writer.writerows(rows)
    writing.write(self._stem.with_suffix(".csv"), text.getvalue())


def _entries(row: Mapping[str, Any], key: tuple[str, ...]) -> tuple:
  return tuple(_plain(row[name]) for name in key)


def _plain(value: Any) -> Any:
  """The value as JSON knows it."""
  if isinstance(value, str | bool | int | None):
    return value
  number = float(value)
  return number if math.isfinite(number) else str(number)
