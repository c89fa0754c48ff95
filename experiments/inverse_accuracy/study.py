"""README's table of errors: methods x formats x families of keys.

  python -m experiments.inverse_accuracy

Settings: `configs/inverse_accuracy.py`. Every inverse on named families of keys
and on the matrices of the byte model that ships, against float64, with the
certificate beside it. The last line printed names the report.
"""

from experiments.harness import record
from experiments.harness.progress import Progress, Tick, silent
from experiments.harness.reporting import tables
from experiments.harness.reporting.report import Report
from experiments.inverse_accuracy import cases, errors, text_matrices
from experiments.inverse_accuracy.accuracy_tables import MILD, add_tables, worst
from experiments.inverse_accuracy.errors import ErrorRow, InverseSettings

Settings = InverseSettings


def inverse_accuracy(settings: InverseSettings, run: record.Run) -> None:
  """Measures everything, writes tables and `report.html`, prints its path."""
  report = Report("Errors of the chunk inverse", run.origin())
  with Progress(units(settings), label="inverse_accuracy") as tick:
    add(settings, run, report, tick)
  families = run.frame("families")
  print(tables.aligned(worst(families[families.beta == MILD])))
  report.leave(run.folder)


def units(settings: InverseSettings) -> int:
  """How often `add` ticks."""
  sizes = [n for n in settings.paper_chunks if n != settings.chunk_size]
  paper = len(sizes) * len(cases.paper_cases(settings.formats))
  return len(cases.all_cases(settings.formats)) + paper


def add(
  settings: InverseSettings, run: record.Run, report: Report, tick: Progress
) -> None:
  """Measures everything into the run's tables and a section of the report."""
  fed, difficulty = text_matrices.model_group(settings)
  groups = [*errors.family_groups(settings), fed]
  rows = errors.study(groups, cases.all_cases(settings.formats), tick)
  for row in rows:
    model = row.family == text_matrices.FAMILY
    run.write("model" if model else "families", row)
  for row in paper_rows(settings, rows, tick):
    run.write("paper_settings", row)
  report.section("The chunk inverse of Gated DeltaNet")
  add_tables(report, run, tables.frame(rows), difficulty, settings)


def paper_rows(
  settings: InverseSettings, rows: list[ErrorRow], tick: Tick = silent
) -> list[ErrorRow]:
  """The paper's setting for each chunk length; the study's own is in `rows`."""
  known = {cases.PAPER: "banded", "ladder": "ladder"}
  chosen = cases.paper_cases(settings.formats)
  formats = {form for _, form, _ in chosen}
  found = []
  for size in settings.paper_chunks:
    if size == settings.chunk_size == 64:
      found += [
        row._replace(method=known[row.method])
        for row in rows
        if row.method in known and row.format in formats
        if row.beta == MILD and row.family != text_matrices.FAMILY
      ]
      continue
    groups = errors.family_groups(settings, chunk_size=size, betas=[(0.6, 1.0)])
    found += errors.study(groups, chosen, tick)
  return found
