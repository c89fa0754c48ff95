"""Both systems at work on a CPU, in one HTML report.

  python -m experiments.quickstart

Settings: `configs/quickstart.py`. The errors of `experiments.inverse_accuracy`,
and photographs restored under a known prior. The last line printed names the
report.
"""

import dataclasses

from experiments.data import degradations
from experiments.harness import record, writing
from experiments.harness import report as reports
from experiments.harness.progress import Progress
from experiments.inverse_accuracy import study as inverse_accuracy
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.quickstart import pages, restoration
from experiments.quickstart.restoration import RestorationSettings

TITLE = "neumann-posterior: quickstart"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the quickstart.

  Attributes:
    inverse: of the chunk inverse's errors.
    restoration: of the photographs.
  """

  inverse: InverseSettings
  restoration: RestorationSettings


def quickstart(settings: Settings, run: record.Run) -> None:
  """Runs both studies, writes tables and `report.html`, prints its path."""
  report = reports.Report(TITLE, run.origin())
  total = inverse_accuracy.units(settings.inverse)
  total += 1 + len(degradations.OPERATORS)
  with Progress(total, label="quickstart") as tick:
    inverse_accuracy.add(settings.inverse, run, report, tick)
    _restoration(settings.restoration, run, report, tick)
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


def _restoration(
  settings: RestorationSettings,
  run: record.Run,
  report: reports.Report,
  tick: Progress,
) -> None:
  rows, pictures = restoration.study(settings, tick)
  for row in rows:
    run.write("restoration", row)
  report.section("Photographs restored under a known prior")
  pages.add_restoration(report, run.frame("restoration"), pictures, settings)
  brief = pages.brief(pictures)
  writing.write(run.folder / "panel.jpg", reports.render(brief, "jpeg"))
  writing.write(run.folder / "panel.txt", pages.caption(settings) + "\n")
