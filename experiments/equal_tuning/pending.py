"""The cells that are still to be begun, by this process or by others."""

import pathlib
import threading

from experiments.equal_tuning.bench import Bench
from experiments.equal_tuning.cells import Cell, begun, cells
from experiments.equal_tuning.settings import Settings

# Evaluations of what one process may have begun: three of the longest cells.
_AHEAD = 3000


class Pending:
  """Hands out cells, the first ones first; to several threads."""

  def __init__(self, settings: Settings, bench: Bench, folder: pathlib.Path):
    """All cells of the settings.

    Args:
      settings: of the comparison.
      bench: that knows which cells wait for others.
      folder: with a file for every cell that was begun.
    """
    self._settings, self._bench, self._folder = settings, bench, folder
    # Means of what is known come last.
    self._cells = sorted(
      enumerate(cells(settings)),
      key=lambda each: bench.lacks_means_alone(each[1]),
    )
    self._lock = threading.Lock()
    self._ahead = 0  # evaluations of what was begun here and is not done

  def __len__(self) -> int:
    return len(self._cells)

  def take(self) -> tuple[int, Cell] | None:
    """A cell to begin and its number; None where none can be begun yet."""
    with self._lock:
      for number, cell in [*self._cells]:
        calls = self._settings.evaluations[cell.budget]
        # Long cells are not taken before they can be run soon: another process
        # may be there sooner.
        full = self._ahead > 0 and self._ahead + calls > _AHEAD
        if full or self._bench.waits(cell):
          continue
        self._cells.remove((number, cell))
        if begun(self._folder / str(number)):
          self._ahead += calls
          return number, cell
      return None

  def is_done(self, cell: Cell) -> None:
    """Makes room for the next one."""
    with self._lock:
      self._ahead -= self._settings.evaluations[cell.budget]
