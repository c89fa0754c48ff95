"""The accuracy study of arXiv 2606.06034 on a language model that we trained.

  python -m experiments.lm_accuracy --workdir=runs/lm_accuracy

Settings: `configs/lm_accuracy.py`. From the shipped model and the standard
library's held-out sources: signal-to-noise ratios of every inverse of the
model's own chunk matrices, perplexity over order and terms of the paper's
method, bits per byte and accuracy of tasks under float and quantised weights,
certificates and plans. The last line printed names the report.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.data import text_data
from experiments.harness import record, writing
from experiments.harness.progress import Progress, Tick
from experiments.harness.subjects import text_model
from experiments.lm_accuracy import (
  capture,
  errors,
  grid,
  plans,
  predictions,
  report,
  token_rows,
)
from experiments.lm_accuracy.settings import Settings
from experiments.lm_accuracy.token_rows import MAKERS, NATURAL, TokenRows
from neumann_jax import Execution, InverseSpec, LanguageModel, RuleOptions
from neumann_jax.shipped import SHIPPED, load_model

SAMPLE = "chunk_matrices.npz"
TEXTS = (NATURAL, *MAKERS)


class Study(NamedTuple):
  """Everything that was read."""

  settings: Settings  # of the study
  model: LanguageModel  # of separate layers
  text: TokenRows  # rows of text
  tasks: TokenRows  # rows of tasks


def prepare(settings: Settings) -> Study:
  """Reads the model and the text, draws the tasks."""
  stream = token_rows.held_out(settings.data, settings.window)
  text = token_rows.text_rows(
    stream,
    natural=settings.natural_rows,
    adversarial=settings.adversarial_rows,
    window=settings.window,
    seed=settings.seed,
  )
  tasks = token_rows.task_rows(
    stream, answers=settings.answers, window=settings.window, seed=settings.seed
  )
  return Study(settings, _model(settings), text, tasks)


def inputs(study: Study) -> dict[str, str]:
  """SHA-256 of the held-out text and of the model, shipped or one's own."""
  settings = study.settings
  text = text_data.fingerprint(text_data.held_out_text(settings.data))
  random = settings.model == text_model.RANDOM
  model = SHIPPED if settings.model == "shipped" else settings.model
  files = [] if random else [model]
  found = {"held-out text": str(text["sha256"])}
  return found | writing.digests("model", files)


def _model(settings: Settings) -> LanguageModel:
  execution = Execution(rule=RuleOptions(spec=InverseSpec("exact")))
  if settings.model == text_model.RANDOM:
    config = dataclasses.replace(
      text_model.random_config(), vocab_size=text_data.VOCABULARY
    )
    return text_model.random_model(config, execution, settings.seed)
  if settings.model == "shipped":
    return load_model(SHIPPED, execution)
  return load_model(pathlib.Path(settings.model), execution)


def lm_accuracy(study: Study, run: record.Run) -> None:
  """Measures everything, writes tables, the sample and `report.html`."""
  settings, model, text, tasks = study
  layers = model.config.layer_types.count("linear_attention")
  with Progress(settings.units(layers), label="lm_accuracy") as tick:
    rows = token_rows.joined(text, tasks)
    _write(
      run,
      "predictions",
      predictions.measure(model, rows, settings.specs, settings.sizes(), tick),
    )
    few = text.first(settings.grid_rows, TEXTS)
    _write(run, "grid", grid.measure(model, few, settings, tick))
    _matrices(study, layers, run, tick)
  page = report.build(study, run)
  print(report.closing(run))
  page.leave(run.folder)


def _write(
  run: record.Run, table: str, rows: Iterable[Mapping[str, Any]]
) -> None:
  for row in rows:
    run.write(table, row)


def _matrices(study: Study, layers: int, run: record.Run, tick: Tick) -> None:
  """Plans for every matrix, errors of a sample of them."""
  settings = study.settings
  rows = study.text.first(settings.captured_rows, TEXTS)
  rng = np.random.default_rng(settings.seed)
  share = -(-settings.error_matrices // layers)
  options: Any = {
    "tolerances": settings.tolerances,
    "formats": settings.plan_formats,
  }
  samples, hardest = [], []
  for size in dict.fromkeys(
    (settings.error_chunk_size, *settings.plan_chunk_sizes)
  ):
    for number, layer in enumerate(capture.layers(study.model, rows, size)):
      tick(f"plans: C={size}, layer {number}")
      if size in settings.plan_chunk_sizes:
        _write(run, "plans", plans.measure(layer, **options))
      if size == settings.error_chunk_size:
        samples.append(capture.sample(layer, share, rng))
        hardest.append(capture.hardest(layer))
  capture.write(capture.joined(hardest), run.folder / SAMPLE)
  sample = capture.joined(samples)
  for found in errors.measure(sample, settings.formats, tick):
    summary = errors.summary(found, sample)
    _write(run, "errors", summary.to_dict("records"))
    if (found.method, found.format) in errors.SCATTERED:
      points = errors.points(found, sample)
      _write(run, "certificates", points.to_dict("records"))
