"""Checkpoints of a training run, and the signal that asks for the last one."""

import pathlib
import signal
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp


class Saved(NamedTuple):
  """What a checkpoint holds.

  Attributes:
    state: of the training, a NamedTuple of trees with a scalar `step`.
    total: steps of the whole run, infinite where not yet known.
  """

  state: Any
  total: float


class Checkpoints:
  """The newest checkpoint of a run, in `folder/checkpoints`."""

  def __init__(self, folder: pathlib.Path):
    """Opens it; nothing is written before `save`."""
    self._manager = ocp.CheckpointManager(
      (folder / "checkpoints").resolve(),
      options=ocp.CheckpointManagerOptions(max_to_keep=1),
    )

  @property
  def newest(self) -> int | None:
    """The step of the newest checkpoint, None where there is none."""
    return self._manager.latest_step()

  def save(self, saved: Saved) -> None:
    """Writes a checkpoint in the background, in place of the one before."""
    step = int(saved.state.step)
    if step != self.newest:
      self._manager.save(step, args=ocp.args.StandardSave(_tree(saved)))

  def restore(self, like: Any) -> Saved:
    """The newest checkpoint.

    Args:
      like: a state of the same network; its values do not matter.

    Returns:
      What was saved.

    Raises:
      ValueError: if there is none, or it is of another network.
    """
    newest = self.newest
    if newest is None:
      raise ValueError("resume must name a run's folder with checkpoints in it")
    abstract = jax.tree.map(
      ocp.utils.to_shape_dtype_struct, _tree(Saved(like, np.inf))
    )
    try:
      found = self._manager.restore(
        newest, args=ocp.args.StandardRestore(abstract)
      )
    except (ValueError, KeyError) as error:
      raise ValueError(
        "resume must name a run of the same network, as the config has it"
      ) from error
    return Saved(type(like)(**found["state"]), float(found["total"]))

  def close(self) -> None:
    """Waits until everything is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def _tree(saved: Saved) -> dict:
  return {
    "state": saved.state._asdict(),
    "total": np.asarray(saved.total, np.float32),
  }


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
