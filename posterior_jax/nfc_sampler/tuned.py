"""What a search for every task has found: presets and their numbers.

`assets/tuned.json` holds, by score, network evaluations and task, the preset
that was the best on the pictures that were tuned on, and its numbers. It is
written by `python -m experiments.equal_tuning.page` from the points of
`experiments.equal_tuning`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from posterior_jax import fields
from posterior_jax.nfc_sampler.records import Mean

if TYPE_CHECKING:
  from posterior_jax.nfc_sampler.presets import Presets

ASSET = pathlib.Path(__file__).parents[1] / "assets/tuned.json"
WIDTH = "factor", "most"  # the numbers of the width, others are the schedule's
FORMS = "fast", "perceptual", "guided", "restoration", "calibrated"

_C = TypeVar("_C", bound="Presets")


def form(config: type[_C], preset: str, evaluations: int) -> _C:
  """A preset with as many levels as fill a budget.

  Args:
    config: `NFCConfig`.
    preset: one of FORMS.
    evaluations: of the network, calls and VJPs; `fast` and `perceptual` take
      one for each level, `guided` and `calibrated` two, `restoration` four.

  Returns:
    The settings; `fast` is turned, for a prior that knows any way up, and
    `restoration` solves by at most three products.
  """
  make = getattr(config, preset)
  found: _C
  if preset == "fast":
    found = make(levels=evaluations, predictor={"turned": True})
  elif preset == "restoration":
    found = make(levels=evaluations // 4, inner=Mean(max_iterations=3))
  else:
    each = 1 if preset == "perceptual" else 2
    found = make(levels=evaluations // each)
  return found


def with_point(config: _C, point: Mapping[str, float]) -> _C:
  """Settings with the numbers of a point, those of WIDTH and the schedule's."""
  width = {name: v for name, v in point.items() if name in WIDTH}
  schedule = {name: v for name, v in point.items() if name not in WIDTH}
  return config.replace(width=width, schedule=schedule)


def best(config: type[_C], task: str, evaluations: int, score: str) -> _C:
  """The settings of `Presets.tuned`.

  Raises:
    ValueError: for a score, a number of evaluations or a task that was not
      searched.
  """
  by_budget = _entry(_table(), score, "score")
  evaluations = fields.whole("evaluations", evaluations)
  by_task = _entry(by_budget, evaluations, "evaluations")
  point = dict(_entry(by_task, task, "task"))
  preset = point.pop("preset")
  return with_point(form(config, preset, evaluations), point)


@functools.cache
def _table() -> Mapping[str, Any]:
  return json.loads(ASSET.read_text(encoding="utf-8"))


def _entry(
  table: Mapping[str, Any], value: str | int, name: str
) -> Mapping[str, Any]:
  if str(value) not in table:
    raise ValueError(f"{name} must be one of {', '.join(table)}; got {value!r}")
  return table[str(value)]
