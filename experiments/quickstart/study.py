"""Both systems at work on a CPU, in one HTML report.

  python -m experiments.quickstart

Settings: `configs/quickstart.py`. The errors of `experiments.inverse_accuracy`,
a photograph restored under the prior that ships, and the spread of samples
under a prior that is known. The last line printed names the report.
"""

import dataclasses
from typing import NamedTuple

from experiments.data import degradations, photographs
from experiments.harness import prior_files, record, writing
from experiments.harness.progress import Progress
from experiments.harness.reporting import report as reports
from experiments.inverse_accuracy import study as inverse_accuracy
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.quickstart import known, pages, restoration
from experiments.quickstart.known import KnownSettings
from experiments.quickstart.restoration import RestorationSettings
from posterior_jax.base import Denoiser

TITLE = "neumann-posterior: quickstart"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the quickstart."""

  inverse: InverseSettings  # of the chunk inverse's errors
  restoration: RestorationSettings  # of the photograph
  known: KnownSettings  # of the samples under a known prior


class Task(NamedTuple):
  """The settings and the prior that they name."""

  settings: Settings
  denoise: Denoiser


def prepare(settings: Settings) -> Task:
  """Reads the prior."""
  return Task(settings, restoration.read_prior(settings.restoration))


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the photograph and of a prior of one's own."""
  about = task.settings.restoration
  files = [photographs.path(about.photograph)]
  found = prior_files.digests(about.prior)
  return found | writing.digests("photograph", files)


def quickstart(task: Task, run: record.Run) -> None:
  """Runs the studies, writes tables and `report.html`, prints its path."""
  settings = task.settings
  report = reports.Report(TITLE, run.origin())
  total = inverse_accuracy.units(settings.inverse)
  total += 2 + len(degradations.OPERATORS)
  with Progress(total, label="quickstart") as tick:
    inverse_accuracy.add(settings.inverse, run, report, tick)
    _restoration(task, run, report, tick)
  report.leave(run.folder)


def _restoration(
  task: Task, run: record.Run, report: reports.Report, tick: Progress
) -> None:
  settings, denoise = task
  found, answers = restoration.study(settings.restoration, denoise, tick)
  for row in found:
    run.write("restoration", row)
  tick("restoration: the spread of samples")
  for band in known.study(settings.known):
    run.write("bands", band)
  rows, bands = run.frame("restoration"), run.frame("bands")
  about = settings.restoration
  pages.add(report, rows, answers, about, bands, settings.known)
  brief = reports.render(pages.brief(rows, answers), "jpeg")
  writing.write(run.folder / "panel.jpg", brief)
  writing.write(run.folder / "panel.txt", pages.caption(about) + "\n")
