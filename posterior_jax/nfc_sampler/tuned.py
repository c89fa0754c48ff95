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
from typing import Any, Self, TypeVar

from posterior_jax import fields
from posterior_jax.nfc_sampler.presets import Presets
from posterior_jax.nfc_sampler.records import Mean

ASSET = pathlib.Path(__file__).parents[1] / "assets/tuned.json"
WIDTH = "factor", "most"  # the numbers of the width, others are the schedule's
FORMS = "fast", "perceptual", "guided", "restoration", "calibrated"

_C = TypeVar("_C", bound=Presets)


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
  """Settings with the numbers of a point, those of WIDTH and the schedule's.

  Passes share the levels that the settings have.
  """
  width = {name: v for name, v in point.items() if name in WIDTH}
  schedule = {name: v for name, v in point.items() if name not in WIDTH}
  if "passes" not in schedule:
    return config.replace(width=width, schedule=schedule)
  passes = int(schedule.pop("passes"))
  return config.replace(
    levels=config.levels // passes,
    width=width,
    schedule=schedule | {"passes": passes},
  )


@functools.cache
def _table() -> Mapping[str, Any]:
  return json.loads(ASSET.read_text(encoding="utf-8"))


def _entry(
  table: Mapping[str, Any], value: str | int, name: str
) -> Mapping[str, Any]:
  if str(value) not in table:
    raise ValueError(f"{name} must be one of {', '.join(table)}; got {value!r}")
  return table[str(value)]


class Tuned(Presets):
  """The named settings, and those that a search found for a task."""

  @classmethod
  def tuned(
    cls,
    task: str,
    *,
    evaluations: int = 20,
    score: str = "PSNR",
    **changes: Any,
  ) -> Self:
    """The preset that a search found best for a task, and its best numbers.

    `experiments.equal_tuning` tuned five presets, two of them in passes too,
    for every task and budget on eight photographs (four at 1000), 128 x 128,
    noise 0.05 for pixels of [-1, 1], under `photo_prior()`
    (docs/benchmarks/tuned_alike.md). The choice between the presets is made on
    the same photographs. Begin from it where your problem is like one of the
    tasks; under another prior or noise the best may lie elsewhere.

    More evaluations are not always better on other pictures, 23 of the Kodak
    set: in PSNR 100 are level with 20 but in a box (0.11 dB above) and on a
    short motion kernel (0.10 below), and in LPIPS better on masks and
    super-resolution and level on blurs. `levels` are those of a pass.

    Where `fast` is the best it turns the images that it shows to the prior:
    pass `predictor={"turned": False}` for a prior of pictures with one way up.
    `nfc` needs the prior's `spectrum` for all presets but `restoration`.

    Args:
      task: one of `baselines.TASKS`: super-resolution x4, half a side's box, 70
        % of pixels dropped, Gaussian blur, motion blur by the medium kernel.
      evaluations: of the network, calls and VJPs: 20, 50, 100, 200 or 1000.
      score: "PSNR", or "LPIPS" for one sharp image.
      **changes: as of `replace`.

    Raises:
      ValueError: for a task, a number of evaluations or a score that was not
        searched.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.tuned("gaussian_blur")
      >>> config.levels, config.predictor.turned
      (20, True)
    """
    by_budget = _entry(_table(), score, "score")
    evaluations = fields.whole("evaluations", evaluations)
    by_task = _entry(by_budget, evaluations, "evaluations")
    point = dict(_entry(by_task, task, "task"))
    made = form(cls, point.pop("preset"), evaluations)
    return with_point(made, point).replace(**changes)
