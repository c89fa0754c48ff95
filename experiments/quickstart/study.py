"""Both systems at work on a CPU, in one HTML report.

  python -m experiments.quickstart

Settings: `configs/quickstart.py`. The last line printed names the report.
"""

import dataclasses

from experiments.data import degradations
from experiments.harness import record
from experiments.harness import report as reports
from experiments.harness.progress import Progress
from experiments.inverse_accuracy import (
  bounds_pages,
  cases,
  errors,
  families_pages,
  text_matrices,
)
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.quickstart import restoration as restoration_study
from experiments.quickstart import restoration_pages
from experiments.quickstart.restoration import RestorationSettings

TITLE = "neumann-posterior: quickstart"
PAPER_CHUNKS = (32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the quickstart.

  Attributes:
    inverse: of the chunk inverse's study.
    restoration: of the photographs'.
  """

  inverse: InverseSettings
  restoration: RestorationSettings


def quickstart(settings: Settings, run: record.Run) -> None:
  """Runs every study, writes tables and `report.html`, prints its path."""
  report = reports.Report(TITLE, _summary(run))
  total = len(cases.all_cases()) + len(degradations.OPERATORS)
  total += len(PAPER_CHUNKS) * len(cases.paper_cases())
  with Progress(total, label="quickstart") as tick:
    _inverse(settings.inverse, run, report, tick)
    _restoration(settings.restoration, run, report, tick)
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


def _inverse(
  settings: InverseSettings,
  run: record.Run,
  report: reports.Report,
  tick: Progress,
) -> None:
  fed, difficulty = text_matrices.model_group(settings)
  groups = [*errors.family_groups(settings), fed]
  rows = errors.study(groups, cases.all_cases(), tick)
  model = [row for row in rows if row.family == text_matrices.FAMILY]
  families = [row for row in rows if row.family != text_matrices.FAMILY]
  by_size = [
    row
    for size in PAPER_CHUNKS
    for row in errors.study(
      errors.family_groups(settings, chunk_size=size, betas=[(0.6, 1.0)]),
      cases.paper_cases(),
      tick,
    )
  ]
  tables = {"families": families, "model": model, "paper_settings": by_size}
  for table, found in tables.items():
    for row in found:
      run.write(table, row._asdict())
  report.section("The chunk inverse of Gated DeltaNet")
  families_pages.add_families(report, families, settings.draws)
  families_pages.add_model(report, model, difficulty)
  families_pages.add_paper_settings(report, by_size, settings.draws)
  bounds_pages.add_certificate(report, rows)
  bounds_pages.add_plans(report, settings.chunk_size)


def _restoration(
  settings: RestorationSettings,
  run: record.Run,
  report: reports.Report,
  tick: Progress,
) -> None:
  rows, pictures = restoration_study.study(settings, tick)
  for row in rows:
    run.write("restoration", row._asdict())
  report.section("Photographs restored under a known prior")
  restoration_pages.add_restoration(report, rows, pictures, settings)
  brief = restoration_pages.brief(pictures)
  (run.folder / "panel.jpg").write_bytes(reports.render(brief, "jpeg"))
  (run.folder / "panel.txt").write_text(
    restoration_pages.caption(settings) + "\n"
  )


def _summary(run: record.Run) -> str:
  found = run.environment
  return (
    f"Measured on {', '.join(found['devices'])} ({found['machine']}, "
    f"{found['cpus']} CPUs) with jax {found['versions']['jax']} and Python "
    f"{found['python']}; command: `{found['command']}`. Everything needed to "
    "repeat it stands in `environment.json` beside this file, every number in "
    "the `.jsonl` and `.csv` tables."
  )
