"""Curves for TensorBoard, where its package is installed."""

import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from experiments.harness.processes import hosts


class Scalars:
  """Event files in `folder/tensorboard`; without the package, one sentence.

  Curves are worth less than what they show: where they cannot be written, that
  is said once and the run goes on.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens a new file in place of those of the runs before."""
    self._writer: Any = None
    if not hosts.is_first():
      return
    try:
      from tensorboard.summary import Writer
    except ImportError:
      print(
        "no curves for TensorBoard: pip install "
        "'neumann-posterior[tensorboard]'",
        file=sys.stderr,
      )
    else:
      place = folder / "tensorboard"
      shutil.rmtree(place, ignore_errors=True)
      self._writer = Writer(str(place))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """A point of every curve."""
    if self._writer is None:
      return
    try:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)
      self._writer.flush()
    except OSError as error:
      self._give_up(error)

  def close(self) -> None:
    """Closes the file."""
    try:
      if self._writer is not None:
        self._writer.close()
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    print(f"no more curves for TensorBoard: {error}", file=sys.stderr)
    self._writer = None
