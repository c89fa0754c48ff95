"""Checkpoints of a training run, and the signal that asks for the last one."""

import hashlib
import pathlib
import re
import shutil
import signal
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils

from experiments.harness import writing
from experiments.harness.processes import hosts
from experiments.harness.training import shared_checkpoints

KEPT = 2  # the newest, and the one that takes its place if it is damaged
_SHARED = ".orbax"  # of folders that many processes wrote
_NAME = re.compile(r"(\d{8,})(-[0-9a-f]{64}\.safetensors|\.orbax)")


class Saved(NamedTuple):
  """What a checkpoint holds."""

  state: Any  # of the training, a NamedTuple of trees with a scalar `step`
  total: float  # steps of the whole run, infinite where not yet known


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
    return hosts.from_first(lambda: max(self._files(), default=None))

  def save(self, saved: Saved) -> None:
    """Writes a checkpoint; the newest `KEPT` remain.

    Raises:
      Unwritable: those before stay.
    """
    step = int(saved.state.step)
    if step == self.newest:
      return
    self._folder.mkdir(exist_ok=True)
    if hosts.are_many():
      # Each process has a part of the state, and writes that.
      path = self._folder / f"{step:08d}.orbax"
      shared_checkpoints.save(path, _flat(saved))
    else:
      arrays = {name: np.asarray(x) for name, x in _flat(saved).items()}
      data = safetensors.numpy.save(arrays)
      name = f"{step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
      writing.write(self._folder / name, data)
    if hosts.is_first():
      files = self._files()
      for old in sorted(files)[:-KEPT]:
        _remove(files[old])

  def restore(self, like: Any) -> Saved:
    """The newest checkpoint.

    Args:
      like: a state of the same network, placed where parts written by many
        processes are to be; its values do not matter.

    Returns:
      What was saved, on the host or where `like` is.

    Raises:
      Damaged: if it is not what was written. It was put aside, so that the one
        before is the newest now.
      ValueError: if there is none, or it is of another network.
    """
    if self.newest is None:
      raise ValueError("--workdir must hold a run with checkpoints in it")
    path = pathlib.Path(hosts.from_first(lambda: str(self._newest_file())))
    if fault := hosts.from_first(lambda: _put_aside(path)):
      raise Damaged(fault)
    like = Saved(like, np.inf)
    arrays = _arrays(path, _flat(like))
    if arrays is None:
      raise writing.Refused(
        "--workdir must hold a run of the same network, as the config has it"
      )
    leaves = [arrays[name] for name in _flat(like)]
    saved = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return saved._replace(total=float(saved.total))

  def _newest_file(self) -> pathlib.Path:
    files = self._files()
    return files[max(files)]

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


def _put_aside(path: pathlib.Path) -> str:
  """What is wrong with a checkpoint, which then is renamed; or nothing."""
  if path.suffix == _SHARED:
    fault = shared_checkpoints.fault(path)
  else:
    found, promised = writing.digest(path), path.stem.split("-")[1]
    name = f"{path.parent.name}/{path.name}"
    fault = f"{name} is damaged, its SHA-256 is {found}"
    fault = "" if found == promised else fault
  if not fault:
    return ""
  aside = path.with_suffix(".damaged")
  _remove(aside)
  path.replace(aside)
  return f"{fault}; it was renamed to end in .damaged"


def _arrays(path: pathlib.Path, like: dict[str, Any]) -> dict[str, Any] | None:
  """The arrays of a checkpoint, None if they are none like these."""
  if path.suffix == _SHARED:
    return shared_checkpoints.restore(path, like)
  arrays = safetensors.numpy.load_file(path)
  return arrays if _shapes(arrays) == _shapes(like) else None


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _flat(saved: Saved) -> dict[str, Any]:
  """Leaves by their paths in the tree."""
  leaves, _ = jax.tree.flatten_with_path(saved)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  return named | {".total": np.asarray(saved.total, np.float32)}


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple]:
  return {name: (x.shape, np.dtype(x.dtype)) for name, x in arrays.items()}


class Interrupt:
  """A context in which SIGTERM only sets a mark.

  Of many processes one may be told, and all must stop after the same step: JAX
  takes the signal there, and has them agree.

  Attributes:
    asked: whether the signal came.
  """

  def __init__(self) -> None:
    """Not asked yet."""
    self.asked = False
    self._calls = 0

  def reached(self) -> bool:
    """Whether the run is to stop before the next step; sets `asked`.

    Of many processes each calls it before every step.
    """
    if hosts.are_many() and not self.asked:
      # Counted from 0, also where a run goes on from a checkpoint: after a
      # signal that comes before the first call, JAX stops at 1 and no other.
      self.asked = multihost_utils.reached_preemption_sync_point(self._calls)
      self._calls += 1
    return self.asked

  def _mark(self, number: int, frame: types.FrameType | None) -> None:
    del number, frame
    self.asked = True

  def __enter__(self) -> "Interrupt":
    self._before: Any = None
    if not hosts.are_many():
      self._before = signal.signal(signal.SIGTERM, self._mark)
    return self

  def __exit__(self, *_: object) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
