"""A folder that is there complete or not at all."""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A hidden sibling that becomes `path` at the end, or goes on an error.

  Args:
    path: a new or an empty folder, in one that exists.

  Yields:
    Where to write.

  Raises:
    FileExistsError: if something is at `path`; it stays as it was.
    FileNotFoundError: if the folder above does not exist.
  """
  path = path.absolute()
  _check_new(path)
  # A sibling lies on the same disk: the last step is one rename, which is done
  # or not. Hidden, because a half-written folder must not be taken for a model.
  sibling = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  sibling.mkdir()
  try:
    yield sibling
    sibling.rename(path)  # fails where something came to be meanwhile
  except BaseException:
    # After the rename there is nothing to take away: what came then, as Ctrl-C
    # does, is not to be replaced by an error of that.
    shutil.rmtree(sibling, ignore_errors=True)
    raise


def _check_new(path: pathlib.Path) -> None:
  """Raises unless `path` is new or an empty folder in one that exists.

  Raises:
    FileExistsError: if something is there.
    FileNotFoundError: if the folder above is not.
  """
  if not path.parent.is_dir():
    raise FileNotFoundError(
      f"path must lie in a folder that exists, got {path}"
    )
  taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
  if taken or path.is_symlink():
    raise FileExistsError(f"path must be new or an empty folder, got {path}")
