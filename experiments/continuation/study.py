"""Where continuation helps: in closed form, on mixtures and on photographs.

  python -m experiments.continuation

Settings: `configs/continuation.py`. Under a Gaussian prior and circular blur
the expected error of a run is known (`chain`): no sampling, no intervals. Each
hypothesis stands beside its control, the same run without a band.

  few calls     a band lets few levels reach what many reach without one
  wrong kernel  a band by the operator's own uncertainty keeps its error out;
                so does the error that each kernel makes of the prediction
  strong noise  a band makes up for a likelihood that trusts noise too much
  tau and step  what the published tau and step size are worth, each alone
  mixtures      weights give modes their shares (`mixtures`)

With `--config.folder=PICTURES` the first three, wavelets and phase retrieval
stand on photographs as well (`photographs`, `phase`): samples there, so paired
intervals.
"""

import itertools
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.calibration import problems
from experiments.continuation import (
  closed_form,
  mixtures,
  phase,
  photographs,
  tables,
)
from experiments.continuation.photographs import Pictures
from experiments.continuation.settings import MIXTURES, Settings
from experiments.data import degradations
from experiments.data import photographs as pictures
from experiments.harness import prior_files, progress, record, writing
from experiments.harness.processes.threads import in_threads
from experiments.harness.reporting import report as reports

Row = dict[str, Any]


def mixture_rows(settings: Settings) -> Iterator[Row]:
  """Errors of the modes' shares: by measurements, levels, with and without."""
  for measured in (1, 2, 4) if settings.mixtures else ():
    made = [
      problems.mixture(8, measured, number, settings.seed)
      for number in range(settings.mixtures)
    ]
    for levels, weighted in itertools.product(
      settings.mixture_levels, (False, True)
    ):
      for number, problem in enumerate(made):
        yield {
          "measured": measured,
          "levels": levels,
          "variant": "weights" if weighted else "no weights",
          "problem": number,
          "error": mixtures.mode_share_error(
            problem,
            jax.random.key(settings.seed + number),
            levels=levels,
            count=settings.particles,
            weighted=weighted,
          ),
        }


def files_of(settings: Settings) -> list[pathlib.Path]:
  """The photographs; ValueError where there are none."""
  return pictures.files_in(settings.folder)[: settings.pictures]


def read(settings: Settings) -> Pictures:
  """Photographs and prior; ValueError where they are not there."""
  files = files_of(settings)
  size, denoise = settings.crop, prior_files.load(settings.prior).denoise
  return Pictures(
    [file.name for file in files],
    np.concatenate([pictures.crops(file, size, 1) for file in files]),
    denoise,
    degradations.build_prior(size).spectrum,
  )


def photograph_rows(settings: Settings, given: Pictures) -> Iterator[Row]:
  """A row for every case and picture, as they are done."""
  groups = photographs.by_program(photographs.cases(settings))
  turn = threading.Lock()

  def one(group: list[photographs.Case]) -> list[Row]:
    return photographs.restored(group, given, settings.seed, turn)

  with progress.Progress(len(groups), label="photographs") as tick:
    for found in in_threads(one, groups, settings.workers):
      tick(f"{found[0]['hypothesis']}: {found[0]['variant']}")
      yield from found


def phase_rows(settings: Settings, given: Pictures) -> Iterator[Row]:
  """A row for every number of levels, variant and picture."""
  for levels in settings.phase_levels:
    yield from phase.rows(levels, given, settings.noise_std, settings.seed)


def prepare(settings: Settings) -> tuple[Settings, Pictures | None]:
  """What the study is called with."""
  return settings, read(settings) if settings.folder else None


def inputs(given: tuple[Settings, Pictures | None]) -> dict[str, str]:
  """SHA-256 of the photographs and of a prior of one's own."""
  settings, photos = given
  if photos is None:
    return {}
  found = prior_files.digests(settings.prior)
  return found | writing.digests("photograph", files_of(settings))


def continuation(
  given: tuple[Settings, Pictures | None], run: record.Run
) -> None:
  """Writes the rows and a report with a table for every hypothesis."""
  settings, photos = given
  for row in closed_form.rows(settings):
    run.write("continuation", row)
  for row in mixture_rows(settings):
    run.write("mixtures", row)
  for row in photograph_rows(settings, photos) if photos else ():
    run.write("photographs", row)
  for row in phase_rows(settings, photos) if photos else ():
    run.write("phases", row)
  report = reports.Report("Where continuation helps", run.origin())
  shown = tables.closed_form(settings, run.frame("continuation"))
  if settings.mixtures:
    shown.append(tables.mixture(settings, run.frame("mixtures")))
  if photos:
    shown += tables.photograph(settings, run.frame("photographs"))
    if settings.phase_levels:
      shown.append(tables.phase(settings, run.frame("phases")))
  for name, title, table, about in shown:
    report.table(
      title,
      table,
      digits=dict.fromkeys(table.columns, 3 if name == MIXTURES else 1),
      measured_on=about,
      name=name.replace(" ", "_"),
    )
    print(table.round(3).to_string())
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")
