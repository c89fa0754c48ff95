"""Checkpoints of a training run, and the signal that asks for the last one."""

import hashlib
import pathlib
import re
import signal
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from experiments.harness import writing

KEPT = 2  # the newest, and the one that takes its place if it is damaged
_NAME = re.compile(r"(\d{8,})-([0-9a-f]{64})\.safetensors")


class Saved(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: of the training, a NamedTuple of trees with a scalar `step`.
    total: steps of the whole run, infinite where not yet known.
  """

  state: Any
  total: float


class Damaged(ValueError):
  """A checkpoint is not what was written; it was put aside."""


class Checkpoints:
  """The newest checkpoints of a run, `folder/checkpoints/STEP-SHA256...`.

  A file's name says its hash, so that one rename puts both in place, and no
  flipped bit is read.
  """

  def __init__(self, folder: pathlib.Path):
    """Nothing is written before `save`."""
    self._folder = folder / "checkpoints"

  @property
  def newest(self) -> int | None:
    """The step of the newest checkpoint, None where there is none."""
    return max(self._files(), default=None)

  def save(self, saved: Saved) -> None:
    """Writes a checkpoint; the newest `KEPT` remain.

    Raises:
      Unwritable: those before stay.
    """
    step = int(saved.state.step)
    if step == self.newest:
      return
    arrays = {name: np.asarray(x) for name, x in _flat(saved).items()}
    data = safetensors.numpy.save(arrays)
    name = f"{step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    self._folder.mkdir(exist_ok=True)
    writing.write(self._folder / name, data)
    files = self._files()
    for old in sorted(files)[:-KEPT]:
      files[old].unlink(missing_ok=True)

  def restore(self, like: Any) -> Saved:
    """The newest checkpoint.

    Args:
      like: a state of the same network; its values do not matter.

    Returns:
      What was saved, on the host.

    Raises:
      Damaged: if it is not what was written. It was put aside, so that the one
        before is the newest now.
      ValueError: if there is none, or it is of another network.
    """
    if self.newest is None:
      raise ValueError("--workdir must hold a run with checkpoints in it")
    path = self._files()[self.newest]
    data = path.read_bytes()
    found, promised = hashlib.sha256(data).hexdigest(), path.stem.split("-")[1]
    if found != promised:
      path.replace(path.with_suffix(".damaged"))
      raise Damaged(
        f"{path.parent.name}/{path.name} is damaged, its SHA-256 is {found}; "
        "it was renamed to end in .damaged"
      )
    arrays = safetensors.numpy.load(data)
    like = Saved(like, np.inf)
    if _shapes(arrays) != _shapes(_flat(like)):
      raise writing.Refused(
        "--workdir must hold a run of the same network, as the config has it"
      )
    leaves = [arrays[name] for name in _flat(like)]
    saved = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return saved._replace(total=float(saved.total))

  def _files(self) -> dict[int, pathlib.Path]:
    """By step.

    Raises:
      Refused: there is one that was written before they had hashes.
    """
    found = list(self._folder.iterdir()) if self._folder.is_dir() else []
    for path in found:
      if path.name.isdecimal() and path.is_dir():
        raise writing.Refused(
          f"{str(path)!r} is a checkpoint of an older version, which has no "
          "hash: go on with the run under that version, or start anew in "
          "another --workdir"
        )
    matches = ((_NAME.fullmatch(path.name), path) for path in found)
    return {int(match[1]): path for match, path in matches if match}


def _flat(saved: Saved) -> dict[str, Any]:
  """Leaves by their paths in the tree."""
  leaves, _ = jax.tree.flatten_with_path(saved)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  return named | {".total": np.asarray(saved.total, np.float32)}


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple]:
  return {name: (x.shape, np.dtype(x.dtype)) for name, x in arrays.items()}


class Interrupt:
  """A context in which SIGTERM only sets a mark.

  Attributes:
    asked: whether the signal came.
  """

  def __init__(self) -> None:
    """Not asked yet."""
    self.asked = False

  def _mark(self, number: int, frame: types.FrameType | None) -> None:
    del number, frame
    self.asked = True

  def __enter__(self) -> "Interrupt":
    self._before = signal.signal(signal.SIGTERM, self._mark)
    return self

  def __exit__(self, *_: object) -> None:
    signal.signal(signal.SIGTERM, self._before)
