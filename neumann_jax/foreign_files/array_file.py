"""One array of a `.npy` file."""

import pathlib

import numpy as np

from . import folder
from .messages import clean

_MAGIC = b"\x93NUMPY"


def read(path: pathlib.Path, *, most_numbers: int) -> np.ndarray:
  """The array, of any kind that is no Python object.

  Args:
    path: of the file.
    most_numbers: how many numbers are read at all.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: for a file that is truncated or of another kind, and for more
      numbers; a clause.
  """
  try:
    folder.size(path)
  except ValueError as error:
    raise ValueError(f"it {error}") from None
  with path.open("rb") as file:
    if file.read(len(_MAGIC)) != _MAGIC:
      raise ValueError("it is no .npy file")
  try:
    # Mapped, not read: what a header says of 4 GB takes none.
    values = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # of Python's own parser, which reads the header
    raise ValueError(clean(str(error))) from None
  if values.size > most_numbers:
    raise ValueError(
      f"it has {values.size} numbers, more than the {most_numbers} that are "
      "read"
    )
  return np.array(values)
