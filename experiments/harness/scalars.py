"""Curves for TensorBoard, where its package is installed."""

import pathlib
import sys
from collections.abc import Mapping


class Scalars:
  """Event files in `folder/tensorboard`; without the package, one sentence."""

  def __init__(self, folder: pathlib.Path):
    """Opens a new file beside those of the runs before."""
    try:
      from tensorboard.summary import Writer
    except ImportError:
      print(
        "no curves for TensorBoard: pip install "
        "'neumann-posterior[tensorboard]'",
        file=sys.stderr,
      )
      self._writer = None
    else:
      self._writer = Writer(str(folder / "tensorboard"))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """A point of every curve."""
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)
      self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._writer is not None:
      self._writer.close()
