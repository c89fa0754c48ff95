"""Tunes every sampler's one or two knobs by the same grid budget.

  python -m experiments.tune_samplers

Settings: `configs/tune_samplers.py`. The photographs are `photographs.TUNING`:
a tissue section, a retina, galaxies and the moon, which neither the prior
learned from nor the reports restore. What wins, the highest PSNR of one sample
averaged over tasks and photographs, is written by hand into `tuned()` of every
baseline and `NFCConfig.restoration()`. No grid is larger than LARGEST.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness import progress, record, runner
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects import samplers
from experiments.restoration import runs, setup
from experiments.restoration.runs import Program
from experiments.restoration.setup import SetupSettings

TABLE = "tuning"
LARGEST = 9
# Of the linear solves, none of which tuning shall wait for.
_SOLVE = {"tolerance": (1e-4,)}
# By method: values of the fields that are tuned; all combinations are tried.
# Where the best of a first grid lay at its edge, this is the one around it.
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
  "NFC": {
    "width.factor": (1.5, 2.0, 3.0),
    "schedule.sigma_min": (0.07, 0.1, 0.15),
  },
  # Of its evenly spaced decays those that equal tuning found.
  "AdamDPS": {"scale": (0.025, 0.05, 0.1), "first_decay": (0.4, 0.6, 0.8)},
  "DAPS": {"noise_std": (0.007, 0.014, 0.035), "step_size": (2e-5, 5e-5, 1e-4)},
  "DDNM+": {"eta": (0.0, 0.3, 0.5, 0.7, 0.85, 1.0), **_SOLVE},
  "DDRM": {"eta": (0.0, 0.5, 0.85, 1.0), "eta_data": (0.5, 1.0)},
  "DiffPIR": {"weight": (0.125, 0.25, 0.5), "renewal": (0.7, 1.0), **_SOLVE},
  "DPS": {"scale": (0.1, 0.3, 1.0, 3.0, 6.0, 10.0), "clip": (True,)},
  "FAST-DIPS": {"penalty": (0.25, 0.5, 1.0), "sigma_max": (3.0, 20.0, 100.0)},
  "FGPS": {"scale_start": (1.0, 3.0, 6.0), "scale_end": (1.0, 3.0, 6.0)},
  "MMPS": {"eta": (0.5, 1.0), "iterations": (1, 2, 3)},
  "PiGDM": {"eta": (0.5, 1.0), "data_std": (0.03, 0.06, 0.12, 0.25), **_SOLVE},
  "PnP-DM": {"decay": (0.5, 0.65, 0.8), "nodes": (15, 30, 60), **_SOLVE},
  "RED-diff": {"weight": (0.25, 0.5, 1.0), "learning_rate": (0.01, 0.02, 0.05)},
  "SITCOM": {"steps": (2, 3, 5), "rate": (0.01, 0.02, 0.04)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the tuning."""

  setup: SetupSettings  # photographs, prior and noise
  methods: tuple[str, ...] = setting(among=GRIDS)  # keys of GRIDS, () for all
  # names of `degradations.FROZEN`, whose PSNR is averaged
  tasks: tuple[str, ...]
  evaluations: int = setting(at_least=1)  # denoiser calls a run may spend
  workers: int = setting(at_least=1)  # programs compiled at a time

  def __post_init__(self) -> None:
    super().__post_init__()
    setup.degradations_named(self.tasks)


def points(method: str) -> list[tuple[tuple[str, Any], ...]]:
  """Every combination of a method's grid, (name, value) pairs each."""
  grid = GRIDS[method]
  return [
    tuple(zip(grid, values)) for values in itertools.product(*grid.values())
  ]


def programs(settings: Settings) -> list[Program]:
  """A program for every task, method and point, so that a part is of use."""
  return [
    Program(
      TABLE,
      method,
      samplers.TUNED,
      (degradation,),
      settings.evaluations,
      shown(point),
      point,
    )
    for degradation in setup.degradations_named(settings.tasks)
    for method in settings.methods or GRIDS
    for point in points(method)
  ]


def shown(point: Sequence[tuple[str, Any]]) -> str:
  """A point in words: the fields that vary."""
  return ", ".join(
    f"{name}={value}" for name, value in point if name not in _SOLVE
  )


def ranking(
  # of the table, in which a PSNR of None is a failure and NaN diverged
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, list[tuple[str, float]]]:
  """Mean PSNR of every point of every method, the best first.

  Over the cases that all points of a method have; points that failed or
  diverged everywhere are left out.
  """
  case = ["task", "kernel", "photograph"]
  ran = pd.DataFrame([row for row in rows if row["psnr"] is not None])
  ran = ran.drop_duplicates(["method", "variant", *case], keep="last")
  best = {}
  for method, own in ran.astype({"psnr": float}).groupby("method", sort=False):
    having = own.groupby(case)["psnr"].transform("size")
    shared = own[having == own["variant"].nunique()]
    means = shared.groupby("variant")["psnr"].agg(lambda x: np.mean([*x]))
    means = means[np.isfinite(means)].sort_values(ascending=False)
    best[str(method)] = [(str(point), psnr) for point, psnr in means.items()]
  return best


def tune(task: setup.Task, run: record.Run) -> None:
  """Runs what the table lacks, then prints every method's ranking."""
  settings, shared = task
  wanted = programs(settings)
  left = runs.remaining(wanted, run.rows(TABLE), len(shared.names))
  with progress.Progress(len(left), label=TABLE) as tick:
    for rows in runs.run_all(left, shared, workers=settings.workers, tick=tick):
      for row in rows:
        run.write_once(TABLE, row, runs.KEY)
  for method, ranked in ranking(run.rows(TABLE)).items():
    print(method)
    for point, psnr in ranked:
      print(f"  {psnr:.2f} dB: {point}")


if __name__ == "__main__":
  runner.main(
    "tune_samplers",
    Settings,
    tune,
    prepare=setup.prepare,
    inputs=setup.inputs,
    resumable=True,
  )
