"""What runs before have tried and restored, which a run goes on from."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.rounds import Scores, Values
from experiments.few_calls.search import Knob, Point

_RUN = (*tables.SEARCH, "kernel", "tuned for", "chains")


def files(folder: str) -> list[pathlib.Path]:
  """Those of a folder that are read: points, rows."""
  return [pathlib.Path(folder) / p.name for p in (tables.TRIALS, tables.ROWS)]


class Known:
  """Points and rows by what they are of; nothing at all without a folder."""

  def __init__(self, folders: Sequence[str] = ()) -> None:
    """Reads them.

    Args:
      folders: of `rows.csv` and `trials.csv` as they are committed; the cells
        of one take the place of those of the folders before it.

    Raises:
      ValueError: for a folder that has no such files.
    """
    self._trials: dict[tuple, pd.DataFrame] = {}
    self._rows: dict[tuple, list[dict[str, Any]]] = {}
    self._parsed: dict[tuple, dict[Values, Scores]] = {}  # asked for often
    for folder in folders:
      log, pictures = files(folder)
      try:
        trials, rows = pd.read_csv(log), tables.read(pictures)
        self._trials |= {key: own for key, own in trials.groupby(tables.SEARCH)}
        found: dict[tuple, list[dict[str, Any]]] = {}
        for row in rows.drop(columns="operator").to_dict("records"):
          key = tuple(row[name] for name in _RUN)
          found.setdefault(key, []).append(row)
        self._rows |= found
      except (OSError, KeyError, ValueError) as error:
        raise ValueError(
          f"known must be folders of {log.name} and {pictures.name} as those "
          f"of equal tuning, {folder!r} is none ({error})"
        ) from error

  def tried(
    self, about: Mapping[str, Any], knobs: Sequence[Knob]
  ) -> dict[Values, Scores]:
    """Points of a search and what they scored, in the order of the search.

    Raises:
      ValueError: for points of other knobs.
    """
    key = tuple(about[name] for name in tables.SEARCH)
    if key not in self._parsed:
      self._parsed[key] = self._of(about, self._trials.get(key), knobs)
    return self._parsed[key]

  @staticmethod
  def _of(
    about: Mapping[str, Any], log: pd.DataFrame | None, knobs: Sequence[Knob]
  ) -> dict[Values, Scores]:
    if log is None:
      return {}
    names = [knob.name for knob in knobs]
    found: dict[Values, Scores] = {}
    for words, psnr, lpips in log[["point", "psnr", "lpips"]].itertuples(
      index=False
    ):
      point = parsed(words)
      if list(point) != names:
        raise ValueError(
          f"known has points of {', '.join(point)} for {about['method']}, "
          f"which is tuned by {', '.join(names)}: remove them"
        )
      found[tuple(point.values())] = (psnr, -lpips)
    return found

  def rows(
    self, about: Mapping[str, Any], point: str, names: Sequence[str]
  ) -> list[dict[str, Any]]:
    """What a point restored, a row for each picture; none where that is new."""
    own = self._rows.get(tuple(about[name] for name in _RUN), [])
    same = all(row["point"] == point for row in own)
    return own if same and [r["picture"] for r in own] == [*names] else []


def parsed(words: str) -> dict[str, float]:
  """A point from its words in the tables."""
  parts = (part.split("=") for part in words.split(", "))
  return {name: float(value) for name, value in parts}


def shown(point: Point) -> str:
  """A point in words."""
  return ", ".join(f"{name}={value:.6g}" for name, value in point.items())
