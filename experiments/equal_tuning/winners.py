"""The winners of a search, in a file that other processes begin from."""

import json
import pathlib

from experiments.equal_tuning.cells import Cell
from experiments.equal_tuning.rounds import Values
from experiments.harness import writing


def path(folder: pathlib.Path, cell: Cell) -> pathlib.Path:
  """The file of a cell."""
  return folder / f"{cell}.json".replace("/", "-")


def keep(
  folder: pathlib.Path, cell: Cell, points: list[Values], inside: list[bool]
) -> None:
  """Writes points and whether each lies inside of what was tried.

  Whole or not at all, since others wait for it; of a cell that failed nothing
  of either.
  """
  writing.write_json(path(folder, cell), [*zip(points, inside)])


def kept(folder: pathlib.Path, cell: Cell) -> list[tuple[Values, bool]]:
  """What `keep` wrote; nothing where a cell failed or is not done."""
  try:
    found = json.loads(path(folder, cell).read_text())
  except FileNotFoundError:
    return []
  return [(tuple(point), within) for point, within in found]
