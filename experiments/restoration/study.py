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
from collections.abc import Sequence

import numpy as np

from experiments.data import photographs
from experiments.data.degradations import Case
from experiments.harness import record, samplers
from experiments.harness import report as reports
from experiments.harness.progress import Progress
from experiments.harness.samplers import CALIBRATED, PUBLISHED, TUNED
from experiments.restoration import report, runs
from experiments.restoration import setup as restoration_setup
from experiments.restoration.rows import ABLATION, METHODS, ROBUSTNESS
from experiments.restoration.runs import Program
from experiments.restoration.setup import SetupSettings

TABLE = "restoration"
SETTINGS = (PUBLISHED, TUNED, CALIBRATED)
PARTS = (METHODS, ABLATION, ROBUSTNESS)
# The two parts of the paper, and the noise that its likelihood assumes.
BAND_OFF = {"blend_start": 0.0}
HAAR_OFF = {"haar_high": 1.0, "unlock_start": 1.0}
WITHOUT = {
  "both parts": {},
  "band only": HAAR_OFF,
  "Haar only": BAND_OFF,
  "neither part": BAND_OFF | HAAR_OFF,
}
NOISES = runs.ASSUMPTIONS[:3]
# DAPS's tau, which tuning DAPS left as it is, and the measurement's own noise,
# as an exact likelihood has it. Both step sizes are half the largest stable one
# at the first level.
TAUS = {
  "tau as published": {},
  "tau the noise": {
    "inner_noise_std": None,
    "halved_misfit": True,
    "step_size": 2.5e-3,
  },
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the benchmark.

  Attributes:
    setup: photographs, prior and noise.
    parts: of PARTS.
    methods: keys of `samplers.METHODS`, () for all.
    settings: of the methods, () for all they have.
    tasks: names of `degradations.CASES`, () for all.
    evaluations: denoiser calls of tuned settings, each a budget of its own.
    samples: drawn of every observation in the methods' part, at least 2.
    ablation_tasks: as `tasks`.
    robust_methods: keys of `samplers.METHODS`.
    robust_evaluations: denoiser calls of theirs.
    workers: programs compiled at a time.
  """

  setup: SetupSettings
  parts: tuple[str, ...]
  methods: tuple[str, ...]
  settings: tuple[str, ...]
  tasks: tuple[str, ...]
  evaluations: tuple[int, ...]
  samples: int
  ablation_tasks: tuple[str, ...]
  robust_methods: tuple[str, ...]
  robust_evaluations: int
  workers: int

  def __post_init__(self) -> None:
    for name, known in (
      ("parts", PARTS),
      ("methods", samplers.METHODS),
      ("robust_methods", samplers.METHODS),
      ("settings", SETTINGS),
    ):
      unknown = set(getattr(self, name)) - set(known)
      if unknown:
        raise ValueError(
          f"{name} must be among {', '.join(known)}; got {min(unknown)!r}"
        )
    restoration_setup.cases_named(self.tasks)
    restoration_setup.cases_named(self.ablation_tasks)
    budgets = (*self.evaluations, self.robust_evaluations)
    if not self.evaluations or min(budgets) < 1:
      raise ValueError(
        "evaluations and robust_evaluations must hold positive numbers, got "
        f"{self.evaluations} and {self.robust_evaluations}"
      )
    if self.samples < 2 or self.workers < 1:
      raise ValueError(
        "samples must be at least 2 and workers at least 1, got "
        f"{self.samples} and {self.workers}"
      )


def programs(settings: Settings) -> list[Program]:
  """Everything that is restored, in the order of the parts."""
  makers = {METHODS: _methods, ABLATION: _ablation, ROBUSTNESS: _robustness}
  return [p for part in settings.parts for p in makers[part](settings)]


def _methods(settings: Settings) -> list[Program]:
  """Published settings as they are, the others at every budget."""
  cases = restoration_setup.cases_named(settings.tasks)
  wanted = settings.settings or SETTINGS
  found = []
  for method in settings.methods or samplers.METHODS:
    for setting in samplers.METHODS[method].settings:
      if setting not in wanted:
        continue
      budgets = (0,) if setting == PUBLISHED else settings.evaluations
      for budget, group in itertools.product(budgets, by_task(cases)):
        found.append(
          Program(
            METHODS, method, setting, group, budget, samples=settings.samples
          )
        )
  return found


def _ablation(settings: Settings) -> list[Program]:
  """The paper's setting without its parts, at two assumed noises."""
  cases = restoration_setup.cases_named(settings.ablation_tasks)
  return [
    Program(
      ABLATION,
      "NFC",
      PUBLISHED,
      group,
      variant=f"{name}, {tau}",
      changes=tuple((parts | changes).items()),
    )
    for (name, parts), (tau, changes) in itertools.product(
      WITHOUT.items(), TAUS.items()
    )
    for group in by_task(cases)
  ]


def _robustness(settings: Settings) -> list[Program]:
  """Wrong beliefs on motion blur; too strong or weak a noise elsewhere."""
  cases = restoration_setup.cases_named(settings.ablation_tasks)
  found = []
  for method in settings.robust_methods:
    for setting in samplers.METHODS[method].settings:
      if setting == PUBLISHED:
        continue
      for group in by_task(cases):
        blur = group[0].task == "motion_blur"
        beliefs = runs.ASSUMPTIONS if blur else NOISES
        found.append(
          Program(
            ROBUSTNESS,
            method,
            setting,
            group,
            settings.robust_evaluations,
            assumed=beliefs,
          )
        )
  return found


def by_task(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
  """Cases of one task together: they share a compiled program."""
  tasks = dict.fromkeys(case.task for case in cases)
  return [tuple(c for c in cases if c.task == task) for task in tasks]


def restore(settings: Settings, run: record.Run) -> None:
  """Runs what the table lacks, then writes the report."""
  setup = restoration_setup.build(settings.setup)
  left = runs.remaining(programs(settings), run.rows(TABLE), len(setup.names))
  pictures = run.folder / report.PICTURES
  pictures.mkdir(exist_ok=True)

  def keep(program: Program, case: Case, samples: np.ndarray) -> None:
    if program.part == METHODS:
      name = report.picture_name(
        case, program.method, program.setting, program.evaluations
      )
      photographs.save(samples[0], pictures / f"{name}.png")
      photographs.save(samples.mean(0), pictures / f"{name}, mean.png")
      spread = np.sqrt(samples.var(0, ddof=1).mean(-1, keepdims=True))
      photographs.save(
        4 * np.repeat(spread, 3, -1) - 1, pictures / f"{name}, spread.png"
      )

  with Progress(len(left), label="restoration") as tick:
    for rows in runs.run_all(
      left, setup, workers=settings.workers, keep=keep, tick=tick
    ):
      for row in rows:
        run.write(TABLE, row._asdict())
  path = report.write(run, setup, run.rows(TABLE))
  print(f"report: {reports.shown(path)}")
