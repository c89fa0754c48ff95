"""What `lm_accuracy` found, as a report, beside what it should find."""

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.data import sequence_tasks
from experiments.evaluate_lm import plot
from experiments.evaluate_lm.sweep import AS_TRAINED, weights_words
from experiments.harness import record
from experiments.harness.report import Cell, Report, short
from experiments.lm_accuracy import pages, paper
from experiments.lm_accuracy.predictions import (
  EXACT,
  MOST_BITS,
  MOST_POINTS,
  RECALL,
)

Table = Sequence[Mapping[str, Any]]


class Promise(NamedTuple):
  """Something that the study has to show.

  Attributes:
    what: in words.
    measured: the worst value.
    limit: what it must not exceed.
    where: of the worst value.
  """

  what: str
  measured: float
  limit: float
  where: str

  @property
  def kept(self) -> bool:
    """Whether it is kept; what is not finite is not."""
    return self.measured <= self.limit


class Pooled(NamedTuple):
  """One inverse over all kinds of text, as `evaluate_plot` reads it."""

  weights: str
  chunk_size: int
  spec: str
  products: int
  mean_kl: float


def promises(run: record.Run) -> list[Promise]:
  """Every promise that the run measured, on weights as trained."""
  rows = [r for r in run.rows("predictions") if r["weights"] == AS_TRAINED]
  found = []
  for spec, limit in MOST_BITS.items():
    own = [row for row in rows if row["spec"] == spec]
    text = [row for row in own if row["kind"] not in sequence_tasks.TASKS]
    if text:
      found.append(
        _worst(text, "more_bits", limit, f"{spec}: bits a byte, any text")
      )
  for spec in MOST_BITS:
    own = [row for row in rows if row["spec"] == spec]
    tasks = [row for row in own if row["kind"] in RECALL]
    if tasks:
      found.append(
        _worst(tasks, "more_accuracy", MOST_POINTS, f"{spec}: points of recall")
      )
  plans = run.rows("plans")
  broken = sum(
    row["violations"]
    for row in run.rows("errors")
    if row["format"] != "float64"
  )
  return [
    *found,
    Promise(
      "plan: row sum over its tolerance",
      pages.worst_plan(plans),
      1.0,
      f"{len(plans)} plans",
    ),
    Promise("entries beyond their certificate", broken, 0, "all cases"),
  ]


def _worst(rows: Table, field: str, limit: float, what: str) -> Promise:
  def size(row: Mapping[str, Any]) -> float:
    value = abs(float(row[field]))
    return math.inf if math.isnan(value) else value

  worst = max(rows, key=size)
  where = f"C = {worst['chunk_size']}, {worst['kind']}"
  return Promise(what, size(worst), limit, where)


def build(study: Any, run: record.Run) -> Report:
  """The report.

  Args:
    study: of `experiments.lm_accuracy`.
    run: with its tables.
  """
  settings, model, text, tasks = study
  config = model.config
  report = Report(
    "Accuracy of the chunk inverse on a trained language model",
    f"Model: {settings.model}, {config.num_hidden_layers} layers of width "
    f"{config.hidden_size}, {config.layer_types.count('linear_attention')} of "
    "them Gated DeltaNet, on bytes. Command: "
    f"`{run.environment['command']}`. Every number is in the `.jsonl` and "
    "`.csv` tables beside this file, the machine in `environment.json`.",
  )
  measured = (
    f"{len(text.tokens)} rows of text and {len(tasks.tokens)} of tasks, "
    f"{settings.window} tokens each, held-out text of "
    f"{settings.data or f'the library of Python {platform.python_version()}'}, "
    "activations in float32."
  )
  _promises(report, run, measured)
  _predictions(report, run.rows("predictions"), measured)
  errors = run.rows("errors")
  matrices = {r["group"]: r["matrices"] for r in errors}
  drawn = " and ".join(f"{n} of {group}" for group, n in matrices.items())
  pages.add_ratios(
    report,
    run,
    f"matrices of {settings.error_chunk_size} x {settings.error_chunk_size}, "
    f"{drawn}, of all layers and heads.",
  )
  pages.add_grid(report, run, settings)
  pages.add_certificates(report, run)
  pages.add_plans(report, run)
  return report


def closing(run: record.Run) -> str:
  """A line for each promise, and one on what plans save."""
  lines = [
    f"{'kept' if p.kept else 'BROKEN':7} {p.what:44} {short(p.measured):>8} "
    f"<= {p.limit:g} ({p.where})"
    for p in promises(run)
  ]
  return "\n".join([*lines, pages.saving_words(run.rows("plans"))])


def _promises(report: Report, run: record.Run, measured: str) -> None:
  report.section("What had to be shown")
  report.text(
    "Largest differences from the exact float32 inverse, weights as trained, "
    "over natural and adversarial text and all chunk sizes. Red: above the "
    "limit."
  )
  report.table(
    "Limits",
    ["", "measured", "limit", "where"],
    [
      [p.what, Cell(float(p.measured), bad=not p.kept), p.limit, p.where]
      for p in promises(run)
    ],
    measured_on=measured,
    name="promises",
  )


def _predictions(report: Report, rows: Table, measured: str) -> None:
  report.section("Predictions")
  kinds = list(dict.fromkeys(row["kind"] for row in rows))
  tasks = [kind for kind in kinds if kind in sequence_tasks.TASKS]
  texts = [kind for kind in kinds if kind not in tasks]
  cases = dict.fromkeys((row["weights"], row["chunk_size"]) for row in rows)
  report.table(
    "The exact float32 inverse",
    [
      "weights",
      "chunk",
      *(f"{kind}, bits a byte" for kind in texts),
      *(f"{kind}, % right" for kind in tasks),
    ],
    [
      [
        *case,
        *(
          Cell(float(_row(rows, *case, EXACT, kind)["bits"]), digits=4)
          for kind in texts
        ),
        *(
          Cell(float(_row(rows, *case, EXACT, kind)["accuracy"]), digits=2)
          for kind in tasks
        ),
      ]
      for case in cases
    ],
    measured_on=measured,
    name="exact",
  )
  report.text(
    "Differences from it under the same weights and chunk size, token by token "
    "on the same rows: bits a byte with the standard error over rows, points "
    "of accuracy with the answers that changed. `banded` is the paper's "
    "inverse at its own settings, N=3 S=8 at C = 64 and in two halves at 128. "
    "Red: above the limit of the inverse, or not finite."
  )
  for case in cases:
    own = [r for r in rows if (r["weights"], r["chunk_size"]) == case]
    _differences(report, own, texts, tasks, measured)
  report.figure(
    plot.figure(_pooled(rows, texts)),
    plot.CAPTION,
  )
  _beside_the_paper(report, rows, texts[0])


def _differences(
  report: Report,
  rows: Table,
  texts: list[str],
  tasks: list[str],
  measured: str,
) -> None:
  case = rows[0]["weights"], rows[0]["chunk_size"]
  table = []
  for spec in dict.fromkeys(row["spec"] for row in rows):
    if spec == EXACT:
      continue
    own = {row["kind"]: row for row in rows if row["spec"] == spec}
    natural = own[texts[0]]
    bits = [float(own[kind]["more_bits"]) for kind in texts]
    points = [
      f"{float(own[kind]['more_accuracy']):+.2f} ({own[kind]['changed']})"
      for kind in tasks
    ]
    limit = MOST_BITS.get(spec, math.inf)
    cells = [Cell(x, bad=not abs(x) <= limit) for x in bits]
    error = float(natural["standard_error"])
    table.append(
      [spec, natural["products"], cells[0], error, *cells[1:], *points]
    )
  name = f"{case[0]}-{case[1]}"
  report.table(
    f"Differences, {weights_words(case[0])}, C = {case[1]}",
    [
      "inverse",
      "products",
      f"{texts[0]}, bits",
      "standard error",
      *(f"{kind}, bits" for kind in texts[1:]),
      *(f"{kind}, points (changed)" for kind in tasks),
    ],
    table,
    measured_on=measured,
    name=f"differences-{name}",
  )


def _pooled(rows: Table, texts: list[str]) -> list[Pooled]:
  """Mean divergence over all tokens of text."""
  found: dict[tuple[str, int, str, int], list[Mapping[str, Any]]] = {}
  for row in rows:
    if row["kind"] in texts:
      key = row["weights"], row["chunk_size"], row["spec"], row["products"]
      found.setdefault(key, []).append(row)
  return [
    Pooled(
      *key,
      sum(float(row["divergence"]) * row["tokens"] for row in own)
      / sum(row["tokens"] for row in own),
    )
    for key, own in found.items()
  ]


def _beside_the_paper(report: Report, rows: Table, natural: str) -> None:
  """Perplexity ratios: ours on held-out text, the paper's on WikiText-2."""
  table: list[list[Any]] = [
    [
      f"paper, Table {p.table}, {p.model}",
      p.weights,
      p.inverse,
      None if p.exact is None else Cell(p.exact, digits=2),
      Cell(p.paper, digits=2),
      None if p.exact is None else 100 * (p.paper / p.exact - 1),
    ]
    for p in paper.PERPLEXITIES
  ]
  for row in rows:
    if row["kind"] == natural and row["spec"].startswith("banded"):
      weights, size = row["weights"], row["chunk_size"]
      exact = _row(rows, weights, size, EXACT, natural)
      values = [2 ** float(r["bits"]) for r in (exact, row)]
      table.append(
        [
          f"here, C = {size}",
          weights_words(weights),
          row["spec"].removeprefix("banded "),
          *(Cell(value, digits=4) for value in values),
          100 * (values[1] / values[0] - 1),
        ]
      )
  report.table(
    "The paper's inverse: perplexity on natural text",
    ["", "weights", "inverse", "exact", "paper's method", "more, %"],
    table,
    measured_on=f"the paper's rows: {paper.SOURCE}, WikiText-2, a "
    f"token; ours: {natural}, a byte.",
    name="beside-the-paper",
  )
  report.text(
    "The paper has its inverse at the exact one's perplexity on natural text, "
    "within 0.1 % where both are shown, and INT8 equal to INT16. Ours are in "
    "the last column. It shows no adversarial text; the tables above do."
  )


def _row(
  rows: Table, weights: str, size: int, spec: str, kind: str
) -> Mapping[str, Any]:
  return next(
    row
    for row in rows
    if (row["weights"], row["chunk_size"]) == (weights, size)
    and (row["spec"], row["kind"]) == (spec, kind)
  )
