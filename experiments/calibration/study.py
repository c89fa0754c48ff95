"""Every sampler against posteriors that are known exactly.

  python -m experiments.calibration

Settings: `configs/calibration.py`. A Gaussian prior with an exact denoiser,
seen through four operators, the spectrum that NFC's width takes right and off
by factors; and random mixtures of 25 modes. Methods as published, tuned and
calibrated, by how often they call the denoiser. Rows are written as they come;
`--resume` leaves out those that are there.
"""

import dataclasses
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.calibration import report, scores
from experiments.calibration.problems import Gaussian
from experiments.calibration.trials import (
  GAUSSIAN,
  MIXTURE,
  Settings,
  Trial,
  trials,
)
from experiments.harness import record
from experiments.harness.processes.threads import in_threads
from experiments.harness.progress import Progress
from experiments.harness.speed import timing
from experiments.harness.speed.compiled import Compiled
from experiments.harness.subjects import samplers

Row = dict[str, Any]
_EVALUATE: dict[str, Callable[..., Row]] = {
  GAUSSIAN: scores.evaluate_gaussian,
  MIXTURE: scores.evaluate_mixture,
}


def calibrate(settings: Settings, run: record.Run) -> None:
  """Runs what the tables lack, then writes the report."""
  turn = threading.Lock()
  wanted = [t for t in trials(settings) if not is_there(t, run)]
  with Progress(len(wanted), label="calibration") as tick:

    def one(trial: Trial) -> tuple[Trial, list[Row]]:
      tick(str(trial))
      return trial, measure(trial, settings, turn)

    for trial, rows in in_threads(one, wanted, settings.workers):
      for row in rows:
        run.write_once(trial.table, row, (*trial.about(), "number"))
  report.write(run, settings)


def measure(
  trial: Trial,  # what to sample, and how
  settings: Settings,  # of the study
  # held while the device works, so that times are its own
  turn: AbstractContextManager[Any],
) -> list[Row]:
  """A row for every problem of a trial, which are sampled in one batch.

  One row with a note if the method cannot be run.
  """
  blank = trial.about() | {"samples": settings.samples, "number": 0}
  blank |= dict.fromkeys(("note", "calls", "products", "seconds"))
  blank |= dict.fromkeys(scores.NAMES[trial.table])
  found, note = timing.attempt(lambda: _draw(trial, settings, turn))
  if found is None:
    return [blank | {"note": note}]
  drawn, seconds = found
  rows = []
  for number, problem in enumerate(trial.make()):
    samples, calls, products = (part[number] for part in drawn)
    finite = bool(np.isfinite(samples).all())
    about = {
      "number": number,
      "note": "" if finite else "samples are not finite",
      "calls": int(calls),
      "products": int(products),
      "seconds": seconds,
    }
    key = jax.random.fold_in(jax.random.key(settings.seed + 1), number)
    with turn:
      numbers = _EVALUATE[trial.table](
        samples, problem, key, settings.directions
      )
    rows.append(blank | about | numbers)
  return rows


def _draw(
  trial: Trial, settings: Settings, turn: AbstractContextManager[Any]
) -> tuple[samplers.Drawn, float]:
  """Samples [N, B, 1, H, W, 1], calls and products [N]; and the seconds."""
  method, name, factor, budget = trial.who
  problems = trial.make()
  first = problems[0]
  gaussian = first if isinstance(first, Gaussian) else None
  config = samplers.config(
    method,
    name,
    task=gaussian and gaussian.task,
    evaluations=budget or None,
    **dict(trial.changes),
  )
  if hasattr(config, "clip"):  # neither prior ends at [-1, 1]
    config = dataclasses.replace(config, clip=False)
  spectrum = None if gaussian is None else factor * gaussian.prior.spectrum
  sampler = samplers.build(method, config, spectrum=spectrum)
  each = [(problem.prior.denoise, problem.observation) for problem in problems]
  denoise, observation = jax.tree.map(lambda *a: jnp.stack(a), *each)
  keys = jax.random.split(jax.random.key(settings.seed), len(problems))
  draw = Compiled(jax.vmap(samplers.draw(sampler, settings.samples)), turn)
  return draw(denoise, observation, keys), draw.seconds


def is_there(trial: Trial, run: record.Run) -> bool:
  """Whether the table has all rows of a trial, or one that says it failed."""
  rows = [
    row for row in run.rows(trial.table) if row.items() >= trial.about().items()
  ]
  failed = any(row["calls"] is None for row in rows)
  return failed or len(rows) >= len(trial.make())
