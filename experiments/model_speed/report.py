"""What the study of models shows: lines as it runs, a table, its report."""

from typing import Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import tables
from experiments.harness.reporting.report import Report
from experiments.harness.speed import timing
from experiments.model_speed import shapes
from experiments.model_speed.passes import Measured

EVALUATED = ("tokens_per_s", "of_peak", "of_bandwidth")
_COLUMNS = [
  "name",
  "pass",
  "rows",
  "capacity",
  "median_ms",
  "lowest_ms",
  "highest_ms",
  *EVALUATED,
  "note",
]
_HEADINGS = timing.HEADINGS | {
  "name": "model",
  "tokens_per_s": "tokens a second",
  "of_peak": "of peak",
  "of_bandwidth": "of bandwidth",
}
_DIGITS = {
  "ms": 2,
  "lowest": 2,
  "highest": 2,
  "tokens a second": 0,
  "of peak": 2,
  "of bandwidth": 2,
}


def evaluated(found: Measured, device: str) -> dict[str, float | None]:
  """Tokens a second, and shares of what the card does at most, if known."""
  seconds = found.timing.median_ms / 1e3
  peak = shapes.peak(device)
  return {
    "tokens_per_s": found.tokens / seconds,
    "of_peak": peak and found.flops / seconds / peak.flops,
    "of_bandwidth": peak and found.bytes / seconds / peak.bytes,
  }


def line(row: dict[str, Any]) -> str:
  """A row as it is printed while the study runs."""
  about = f"{row['name']}, {row['pass']}, {row['rows']} rows"
  if row["capacity"]:
    about += f", room for {row['capacity']}"
  if row["note"]:
    return f"{about}: {row['note']}"
  return (
    f"{about}: {row['median_ms']:.2f} ms, {row['tokens_per_s']:.0f} tokens a "
    "second"
  )


def closing(rows: pd.DataFrame) -> str:
  """The table printed at the end."""
  return f"\n{timing.machine()}\n{tables.aligned(_shown(rows), _DIGITS)}"


def build(rows: pd.DataFrame, settings: Any, run: record.Run) -> Report:
  """The whole report.

  Args:
    rows: of every model and pass.
    settings: of the study.
    run: its folder and environment.
  """
  page = Report("Whole models with random weights", run.origin())
  page.section("Times")
  page.text(
    f"Weights, activations and products in {settings.dtype}. Training is a "
    f"step of AdamW on a row of {settings.tokens} tokens, computed again by "
    f"`remat='{settings.remat}'`; prefill reads a prompt of {settings.tokens} "
    f"into an empty cache; decoding writes {settings.written} greedy tokens a "
    f"row after a prompt of {settings.prompt} by "
    f"{'scanned' if settings.scanned else 'separate'} layers, with caches that "
    "have room for as many tokens as their capacity says, and its time is of "
    f"one step of all rows. A time is the median of {settings.repeats}, each "
    "waited for."
  )
  page.text(
    "Shares are of the card's data sheet: of peak, the products with weights "
    "and, but for decoding, of attention, three times in training and never "
    "those that are computed again, as the loss's logits are; of bandwidth, "
    "the bytes of the weights alone. Empty where "
    "the card is not known."
  )
  page.table(
    "Training, prefill, decoding",
    _shown(rows),
    measured_on=timing.machine(),
    name="models",
    digits=_DIGITS,
  )
  return page


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
  return rows[_COLUMNS].rename(columns=_HEADINGS)
