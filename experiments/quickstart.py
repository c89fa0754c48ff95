"""Both systems at work on a CPU, in one HTML report.

  python -m experiments.quickstart

Settings: `configs/quickstart.py`. The last line printed names the report.
"""

import dataclasses

from experiments import (
  bounds_report,
  degradations,
  inverse_cases,
  inverse_report,
  inverse_study,
  record,
  restoration_report,
  restoration_study,
  runner,
  text_matrices,
)
from experiments import report as reports
from experiments.inverse_study import InverseSettings
from experiments.progress import Progress
from experiments.restoration_study import RestorationSettings

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
  total = len(inverse_cases.all_cases()) + len(degradations.OPERATORS)
  total += len(PAPER_CHUNKS) * len(inverse_cases.paper_cases())
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
  groups = [*inverse_study.family_groups(settings), fed]
  rows = inverse_study.study(groups, inverse_cases.all_cases(), tick)
  model = [row for row in rows if row.family == text_matrices.FAMILY]
  families = [row for row in rows if row.family != text_matrices.FAMILY]
  by_size = [
    row
    for size in PAPER_CHUNKS
    for row in inverse_study.study(
      inverse_study.family_groups(
        settings, chunk_size=size, betas=[(0.6, 1.0)]
      ),
      inverse_cases.paper_cases(),
      tick,
    )
  ]
  tables = {"families": families, "model": model, "paper_settings": by_size}
  for table, found in tables.items():
    for row in found:
      run.write(table, row._asdict())
  report.section("The chunk inverse of Gated DeltaNet")
  inverse_report.add_families(report, families, settings.draws)
  inverse_report.add_model(report, model, difficulty)
  inverse_report.add_paper_settings(report, by_size, settings.draws)
  bounds_report.add_certificate(report, rows)
  bounds_report.add_plans(report, settings.chunk_size)


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
  restoration_report.add_restoration(report, rows, pictures, settings)
  brief = restoration_report.brief(pictures)
  (run.folder / "panel.jpg").write_bytes(reports.render(brief, "jpeg"))
  (run.folder / "panel.txt").write_text(
    restoration_report.caption(settings) + "\n"
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


if __name__ == "__main__":
  runner.main("quickstart", Settings, quickstart)
