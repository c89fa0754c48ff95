"""Photographs restored by every sampler, in one table and one HTML report.

  python -m experiments.restoration

Settings: `configs/restoration.py`. Five tasks, motion blur with three frozen
kernels, on the held-out photographs and on pictures of one's own: every method
as published and tuned, NFC's ablation, and what a wrong noise level, a wrong
kernel and a short schedule cost. Rows are written as they come; `--resume`
leaves out those that are there.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.data import photographs
from experiments.data.degradations import Degradation
from experiments.harness import record, writing
from experiments.harness.progress import Progress
from experiments.harness.reporting import pictures
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects import samplers
from experiments.harness.subjects.samplers import CALIBRATED, PUBLISHED, TUNED
from experiments.restoration import report, runs
from experiments.restoration.runs import (
  ABLATION,
  METHODS,
  ROBUSTNESS,
  TABLE,
  Program,
)
from experiments.restoration.setup import (
  SetupSettings,
  Task,
  degradations_named,
)

SETTINGS = (PUBLISHED, TUNED, CALIBRATED)
BUDGETS = "evaluations and robust_evaluations must hold positive numbers"
# The two parts of the paper, and the noise that its likelihood assumes.
BAND_OFF = {"band": None}
HAAR_OFF = {"fusion": None}
WITHOUT = {
  "both parts": {},
  "band only": HAAR_OFF,
  "Haar only": BAND_OFF,
  "neither part": BAND_OFF | HAAR_OFF,
}
# DAPS's tau, which tuning DAPS left as it is, and the measurement's own noise,
# as an exact likelihood has it: with the published step, and with one 50 times
# as large, which is half the largest stable one at the first level as well.
_EXACT: dict[str, Any] = {"inner_noise_std": None, "halved_misfit": True}
TAUS: dict[str, dict[str, Any]] = {
  "tau as published": {},
  "tau the noise, step as published": _EXACT,
  "tau the noise": _EXACT | {"inner.step_size": 2.5e-3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the benchmark."""

  setup: SetupSettings  # photographs, prior and noise
  # what to do, in this order
  parts: tuple[str, ...] = setting(among=(METHODS, ABLATION, ROBUSTNESS))
  # keys of `samplers.METHODS`, () for all
  methods: tuple[str, ...] = setting(among=samplers.METHODS)
  # of the methods, () for all they have
  settings: tuple[str, ...] = setting(among=SETTINGS)
  tasks: tuple[str, ...]  # names of `degradations.FROZEN`, () for all
  # denoiser calls of tuned settings, each a budget of its own
  evaluations: tuple[int, ...] = setting(at_least=1, some=True, words=BUDGETS)
  # drawn of every observation in the methods' part
  samples: int = setting(at_least=2)
  ablation_tasks: tuple[str, ...]  # as `tasks`
  # keys of `samplers.METHODS`
  robust_methods: tuple[str, ...] = setting(among=samplers.METHODS)
  # denoiser calls of theirs
  robust_evaluations: int = setting(at_least=1, words=BUDGETS)
  workers: int = setting(at_least=1)  # programs compiled at a time

  def __post_init__(self) -> None:
    super().__post_init__()
    degradations_named(self.tasks)
    degradations_named(self.ablation_tasks)


def programs(settings: Settings) -> list[Program]:
  """Everything that is restored, in the order of the parts."""
  makers = {METHODS: _methods, ABLATION: _ablation, ROBUSTNESS: _robustness}
  return [p for part in settings.parts for p in makers[part](settings)]


def _methods(settings: Settings) -> Iterator[Program]:
  for (method, name, budget), group in itertools.product(
    samplers.variants(
      settings.methods, settings.settings, settings.evaluations
    ),
    _by_task(settings.tasks),
  ):
    yield Program(
      METHODS, method, name, group, budget, samples=settings.samples
    )


def _ablation(settings: Settings) -> Iterator[Program]:
  """The paper's setting without its parts, at two assumed noises."""
  for (name, parts), (tau, changes), group in itertools.product(
    WITHOUT.items(), TAUS.items(), _by_task(settings.ablation_tasks)
  ):
    variant, changed = f"{name}, {tau}", tuple((parts | changes).items())
    yield Program(ABLATION, "NFC", PUBLISHED, group, 0, variant, changed)


def _robustness(settings: Settings) -> Iterator[Program]:
  """A noise that is too strong or weak; of motion blur a wrong kernel too."""
  budgets = (settings.robust_evaluations,)
  for (method, name, budget), group in itertools.product(
    samplers.variants(settings.robust_methods, (TUNED, CALIBRATED), budgets),
    _by_task(settings.ablation_tasks),
  ):
    blur = group[0].task == "motion_blur"
    assumed = runs.ASSUMPTIONS if blur else runs.ASSUMPTIONS[:3]
    yield Program(ROBUSTNESS, method, name, group, budget, assumed=assumed)


def _by_task(names: tuple[str, ...]) -> list[tuple[Degradation, ...]]:
  """Degradations of one task together: they share a compiled program."""
  groups: dict[str, tuple[Degradation, ...]] = {}
  for each in degradations_named(names):
    groups[each.task] = (*groups.get(each.task, ()), each)
  return list(groups.values())


def restore(task: Task, run: record.Run) -> None:
  """Runs what the table lacks, then writes the report."""
  settings, shared = task
  wanted = programs(settings)
  left = runs.remaining(wanted, run.rows(TABLE), len(shared.names))
  folder = run.folder / report.PICTURES
  folder.mkdir(exist_ok=True)

  def keep(
    program: Program, degradation: Degradation, samples: np.ndarray
  ) -> None:
    if program.part == METHODS:
      who = (program.method, program.setting, program.budget)
      name = report.picture_name(degradation, *who)
      spread = np.sqrt(samples.var(0, ddof=1).mean(-1))  # [H, W]
      for ending, image in (
        ("", samples[0]),
        (", mean", samples.mean(0)),
        (", spread", pictures.grey(spread, white=0.5)),
      ):
        file = folder / f"{name}{ending}.png"
        writing.write(file, photographs.as_png(image))

  with Progress(len(left), label="restoration") as tick:
    for rows in runs.run_all(
      left, shared, workers=settings.workers, keep=keep, tick=tick
    ):
      for row in rows:
        run.write_once(TABLE, row, runs.KEY)
  report.write(run, shared, run.frame(TABLE))
