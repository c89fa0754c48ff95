"""What the search found for baselines, by task and number of evaluations.

`tuned.json` holds the points, `trials.csv` every point that was tried and its
mean PSNR on the crops that are tuned on, those of `settings.tuning_files` with
`tuned_on` (`docs/benchmarks/restoration.md` says where): of all baselines at 5
and at 20 evaluations, of DPIR at 10 as well. At 5 MMPS, DPS and, on inpainting,
PiGDM are tuned on the crops without `tuned_on`. A search starts from them:
`--config.most=1` makes the table without one.
"""

import functools
import json
import pathlib

from experiments.few_calls.search import Point

_POINTS = pathlib.Path(__file__).with_name("tuned.json")
TRIALS = pathlib.Path(__file__).with_name("trials.csv")


@functools.cache
def points() -> dict[str, dict[str, dict[str, Point]]]:
  """By method, number of evaluations as text, and task."""
  return json.loads(_POINTS.read_text(encoding="utf-8"))


def start(method: str, evaluations: int, task: str) -> Point:
  """Where a search begins; {} where nothing was tuned."""
  return points().get(method, {}).get(str(evaluations), {}).get(task, {})
