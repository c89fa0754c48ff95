"""What runs before have tried and restored, which a run goes on from."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.equal_tuning import other_prior, tables
from experiments.equal_tuning.rounds import Scores, Values
from experiments.few_calls.search import Knob, Point
from experiments.harness import prior_files

_RUN = (*tables.SEARCH, "kernel", "tuned for", "chains")
_ROWS = (*_RUN, "draws")  # rows of other draws are not a run's own


def files(folder: str) -> list[pathlib.Path]:
  """Those of a folder that are read: points, rows."""
  return [pathlib.Path(folder) / p.name for p in (tables.TRIALS, tables.ROWS)]


def present(folder: str) -> list[pathlib.Path]:
  """`files`, and rows under another prior with what it is, if there are any."""
  second = [
    pathlib.Path(folder) / path.name
    for path in (other_prior.ROWS, other_prior.ABOUT)
  ]
  return [*files(folder), *(second if second[0].exists() else [])]


class Known:
  """Points and rows by what they are of; nothing at all without a folder."""

  def __init__(self, folders: Sequence[str] = ()) -> None:
    """Reads them.

    Args:
      folders: of `rows.csv` and `trials.csv` as they are committed, and of
        `second_rows.csv` and `second_prior.json` where there are such rows; the
        cells of one take the place of those of the folders before it.

    Raises:
      ValueError: for a folder that has no such files.
    """
    self._trials: dict[tuple, pd.DataFrame] = {}
    self._rows: dict[tuple, list[dict[str, Any]]] = {}
    self._points: dict[tuple, str] = {}
    # Of winners that restored again, by the prior and the hash of its weights:
    # its name stays where the package ships another training.
    self._again: dict[tuple, list[dict[str, Any]]] = {}
    self._priors: set[str] = set()
    self._parsed: dict[tuple, dict[Values, Scores]] = {}  # asked for often
    for folder in folders:
      log, pictures, *second = present(folder)
      try:
        trials, rows = tables.read_trials(log), tables.read(pictures)
        self._trials |= {key: own for key, own in trials.groupby(tables.SEARCH)}
        self._rows |= (mine := _by(_ROWS, rows))
        self._points |= {key[:-1]: own[0]["point"] for key, own in mine.items()}
        self._priors |= {*other_prior.names(rows)}
        if second:
          path, about = second
          weights = json.loads(about.read_text("utf-8")).get("sha256")
          again = tables.read(path).assign(sha256=weights)
          self._again |= _by(("prior", "sha256", *_ROWS), again)
      except (OSError, KeyError, ValueError, AttributeError) as error:
        names = ", ".join(path.name for path in (log, pictures, *second))
        raise ValueError(
          f"known must be folders of {names} as those of equal tuning, "
          f"{folder!r} is none ({error})"
        ) from error

  def check_prior(self, prior: prior_files.About) -> None:
    """Refuses, with ValueError, to go on with searches under another prior."""
    if others := self._priors - {prior.prior}:
      raise ValueError(
        f"known must be of the prior that is tuned, {prior.prior!r}, unless "
        f"again is True; it is of {', '.join(sorted(others))!r}"
      )
    first = other_prior.FIRST_WEIGHTS
    if other_prior.FIRST in self._priors and prior.sha256 != first:
      raise ValueError(
        f"known must be of the weights that are tuned, sha256 {prior.sha256}, "
        f"unless again is True; it is of {first}"
      )

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
    self,
    about: Mapping[str, Any],
    point: str,
    names: Sequence[str],
    *,
    again: prior_files.About | None = None,
  ) -> list[dict[str, Any]]:
    """What a point restored, a row for each picture; none where that is new.

    Args:
      about: of the run.
      point: in words.
      names: of the pictures.
      again: a prior: what winners restored again under its weights.
    """
    key = tuple(about[name] for name in _ROWS)
    own = (
      self._rows.get(key, [])
      if again is None
      else self._again.get((again.prior, again.sha256, *key), [])
    )
    same = all(row["point"] == point for row in own)
    return own if same and [r["picture"] for r in own] == [*names] else []

  def restored(self, about: Mapping[str, Any], point: str) -> bool:
    """Whether rows are by a point, whatever the pictures and the draws."""
    return self._points.get(tuple(about[name] for name in _RUN)) == point


def _by(
  names: Sequence[str], rows: pd.DataFrame
) -> dict[tuple, list[dict[str, Any]]]:
  """Rows by their entries in some columns."""
  found: dict[tuple, list[dict[str, Any]]] = {}
  for row in rows.drop(columns="operator").to_dict("records"):
    found.setdefault(tuple(row[name] for name in names), []).append(row)
  return found


def parsed(words: str) -> dict[str, float]:
  """A point from its words in the tables."""
  parts = (part.split("=") for part in words.split(", "))
  return {name: float(value) for name, value in parts}


def shown(point: Point) -> str:
  """A point in words."""
  return ", ".join(f"{name}={value:.6g}" for name, value in point.items())
