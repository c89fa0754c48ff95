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
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.data import sequence_tasks, text_data
from experiments.evaluate_lm.sweep import AS_TRAINED
from experiments.harness import record, text_model
from experiments.harness.progress import Progress, Tick
from experiments.harness.report import shown
from experiments.inverse_speed import cases as speed_cases
from experiments.lm_accuracy import capture, errors, plans, predictions
from experiments.lm_accuracy import grid as accuracy_grid
from experiments.lm_accuracy import report as accuracy_report
from experiments.lm_accuracy import text as accuracy_text
from experiments.lm_accuracy.text import ADVERSARIAL, NATURAL, Rows
from neumann_jax import Execution, InverseSpec, LanguageModel, RuleOptions
from neumann_jax.chunk_inverse.inverse_spec import (
  PRECISIONS,
  Precision,
  check_chunk_size,
)
from neumann_jax.shipped import SHIPPED, load_model
from neumann_jax.weight_quantization import matrix

SAMPLE = "chunk_matrices.npz"
TEXTS = (NATURAL, *ADVERSARIAL)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is measured, on what.

  Attributes:
    model: "shipped", "random" for a small one of random weights, or the
      manifest of one that `neumann_jax.shipped.save_model` wrote.
    data: a folder of text, part of which is held out; "" means the standard
      library of this Python.
    window: tokens of every row; nothing is carried from one row to the next.
    natural_rows: rows of held-out text.
    adversarial_rows: rows of each adversarial kind.
    answers: least answers of each task.
    specs: names of the inverses whose predictions are compared, see
      `speed_cases.parse`.
    chunk_sizes: C under the weights as trained.
    weights: names of `weight_quant.PRESETS`.
    quantised_chunk_sizes: C under these.
    grid_chunk_sizes: C of the grid.
    grid_orders: its N.
    grid_terms: its S.
    grid_precision: its operand format.
    grid_rows: its rows of each kind of text.
    formats: names of `accuracy_errors.FORMATS`, of the table of errors.
    error_chunk_size: its C.
    error_matrices: its matrices of each kind of text.
    captured_rows: rows of each kind whose matrices are captured.
    plan_formats: names of `accuracy_errors.FORMATS`.
    plan_chunk_sizes: C of the plans.
    tolerances: of `neumann_jax.plan`: the largest row sum of |T - X|.
    seed: of adversarial text, tasks, samples and random weights.
  """

  model: str
  data: str
  window: int
  natural_rows: int
  adversarial_rows: int
  answers: int
  specs: tuple[str, ...]
  chunk_sizes: tuple[int, ...]
  weights: tuple[str, ...]
  quantised_chunk_sizes: tuple[int, ...]
  grid_chunk_sizes: tuple[int, ...]
  grid_orders: tuple[int, ...]
  grid_terms: tuple[int, ...]
  grid_precision: Precision
  grid_rows: int
  formats: tuple[str, ...]
  error_chunk_size: int
  error_matrices: int
  captured_rows: int
  plan_formats: tuple[str, ...]
  plan_chunk_sizes: tuple[int, ...]
  tolerances: tuple[float, ...]
  seed: int

  def __post_init__(self) -> None:
    if self.window < sequence_tasks.SHORTEST:
      raise ValueError(
        f"window must be at least {sequence_tasks.SHORTEST}, got {self.window}"
      )
    for name in _COUNTS:
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    for name in _CHUNKS:
      for size in getattr(self, name):
        self._check_chunk(name, size)
    self._check_chunk("error_chunk_size", self.error_chunk_size)
    for name in self.weights:
      matrix.preset(name)
    for name in self.specs:
      for size in (*self.chunk_sizes, *self.quantised_chunk_sizes):
        speed_cases.parse(name, size, "auto")
    known = list(errors.FORMATS)
    for name in ("formats", "plan_formats"):
      allowed = known if name == "formats" else known[1:]
      for form in getattr(self, name):
        if form not in allowed:
          raise ValueError(
            f"{name} must be among {', '.join(allowed)}; got {form!r}"
          )
    if self.grid_precision not in PRECISIONS:
      raise ValueError(
        f"grid_precision must be one of {', '.join(PRECISIONS)}; got "
        f"{self.grid_precision!r}"
      )
    for tolerance in self.tolerances:
      if not tolerance > 0:
        raise ValueError(f"tolerances must be positive, got {tolerance}")

  def _check_chunk(self, name: str, size: int) -> None:
    check_chunk_size(size, name=name)
    if not 16 <= size <= self.window:
      raise ValueError(
        f"{name} must be from 16 to the window's {self.window} tokens, got "
        f"{size}"
      )

  def sizes(self) -> Mapping[str, tuple[int, ...]]:
    """Chunk sizes of the predictions by the name of the weights."""
    quantised = {name: self.quantised_chunk_sizes for name in self.weights}
    return {AS_TRAINED: self.chunk_sizes} | quantised

  def units(self, layers: int) -> int:
    """How many times a study ticks."""
    cases = len(self.specs) + 1
    grid = len(self.grid_chunk_sizes) * (
      1 + 2 * len(self.grid_orders) * len(self.grid_terms)
    )
    return (
      sum(cases * len(sizes) for sizes in self.sizes().values())
      + grid
      + len(self.formats) * len(errors.methods(self.error_chunk_size))
      + layers * len({self.error_chunk_size, *self.plan_chunk_sizes})
    )


_COUNTS = (
  "natural_rows",
  "adversarial_rows",
  "answers",
  "grid_rows",
  "error_matrices",
  "captured_rows",
)
_CHUNKS = (
  "chunk_sizes",
  "quantised_chunk_sizes",
  "grid_chunk_sizes",
  "plan_chunk_sizes",
)


class Study(NamedTuple):
  """Everything that was read.

  Attributes:
    settings: of the study.
    model: of separate layers.
    text: rows of text.
    tasks: rows of tasks.
  """

  settings: Settings
  model: LanguageModel
  text: Rows
  tasks: Rows


def prepare(settings: Settings) -> Study:
  """Reads the model and the text, draws the tasks.

  Raises:
    FileNotFoundError: there is no such manifest.
    ValueError: a file is corrupt, or the text is too short.
  """
  stream = accuracy_text.held_out(settings.data, settings.window)
  text = accuracy_text.text_rows(
    stream,
    natural=settings.natural_rows,
    adversarial=settings.adversarial_rows,
    window=settings.window,
    seed=settings.seed,
  )
  tasks = accuracy_text.task_rows(
    stream,
    answers=settings.answers,
    window=settings.window,
    seed=settings.seed,
  )
  return Study(settings, _model(settings), text, tasks)


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
  settings = study.settings
  layers = study.model.config.layer_types.count("linear_attention")
  with Progress(settings.units(layers), label="lm_accuracy") as tick:
    _predictions(study, run, tick)
    _grid(study, run, tick)
    _matrices(study, run, tick)
  report = accuracy_report.build(study, run)
  print(accuracy_report.closing(run))
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def _predictions(study: Study, run: record.Run, tick: Tick) -> None:
  rows = accuracy_text.joined(study.text, study.tasks)
  settings = study.settings
  for row in predictions.measure(
    study.model, rows, settings.specs, settings.sizes(), tick
  ):
    run.write("predictions", row._asdict())


def _grid(study: Study, run: record.Run, tick: Tick) -> None:
  settings = study.settings
  for row in accuracy_grid.measure(
    study.model,
    study.text.first(settings.grid_rows, TEXTS),
    chunk_sizes=settings.grid_chunk_sizes,
    orders=settings.grid_orders,
    terms=settings.grid_terms,
    precision=settings.grid_precision,
    tick=tick,
  ):
    run.write("grid", row._asdict())


def _matrices(study: Study, run: record.Run, tick: Tick) -> None:
  """Plans for every matrix, errors of a sample of them."""
  settings = study.settings
  rows = study.text.first(settings.captured_rows, TEXTS)
  rng = np.random.default_rng(settings.seed)
  layers = study.model.config.layer_types.count("linear_attention")
  samples, hardest = [], []
  for size in dict.fromkeys(
    (settings.error_chunk_size, *settings.plan_chunk_sizes)
  ):
    for layer in capture.layers(study.model, rows, size):
      tick(f"plans: C={size}, layer {layer.layer[0]}")
      if size in settings.plan_chunk_sizes:
        for plan in plans.measure(
          layer,
          tolerances=settings.tolerances,
          formats=settings.plan_formats,
        ):
          run.write("plans", plan._asdict())
      if size == settings.error_chunk_size:
        share = -(-settings.error_matrices // layers)
        samples.append(capture.sample(layer, share, rng))
        hardest.append(capture.hardest(layer))
  capture.write(capture.joined(hardest), run.folder / SAMPLE)
  sample = capture.joined(samples)
  for found in errors.measure(sample, settings.formats, tick):
    for error in errors.rows(found, sample):
      run.write("errors", error._asdict())
    if (found.method, found.format) in errors.SCATTERED:
      for point in errors.points(found, sample):
        run.write("certificates", point._asdict())
