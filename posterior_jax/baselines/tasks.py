"""Published settings that differ from task to task."""

import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from posterior_jax import fields

Task = Literal[
  "super_resolution",
  "box_inpainting",
  "random_inpainting",
  "gaussian_blur",
  "motion_blur",
]
TASKS: tuple[Task, ...] = typing.get_args(Task)

_T = TypeVar("_T")


def choose(task: Task | None, settings: Mapping[str, _T], otherwise: _T) -> _T:
  """What was published for a task.

  Args:
    task: one of `TASKS`, or None for no task in particular.
    settings: by task, where they differ from the rest.
    otherwise: of every other task, and of None.

  Returns:
    The setting.

  Raises:
    ValueError: for an unknown task.
  """
  if task is None:
    return otherwise
  if task not in TASKS:
    raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
  return settings.get(task, otherwise)


def settings(
  kind: type[_T],
  task: Task | None,
  values: Mapping[str, Any],
  changes: Mapping[str, Any],
) -> _T:
  """A config of some values, with changes.

  Args:
    kind: class of the config.
    task: one of `TASKS`, or None for no task in particular.
    values: by field.
    changes: by field, of a user's own.

  Returns:
    The config.

  Raises:
    ValueError: for an unknown task, a field that the config does not have, or a
      value out of range.
  """
  choose(task, {}, None)
  changed: _T = fields.changed(kind(**values), changes)
  return changed
