"""What the study of the layer shows: a table printed last, and its report."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.harness import tables, timing
from experiments.harness.report import Report
from experiments.harness.timing import DIGITS, HEADINGS, machine
from experiments.layer_speed.parts import BLOCK, INVERSE, PARTS, RULE

FAILS = 0.1  # a relative error above this is shown as a failure


def build(
  rows: pd.DataFrame,  # all that were measured
  settings: Any,  # of `experiments.layer_speed`
  environment: Mapping[str, Any],  # of the run
) -> Report:
  """The whole report."""
  mark = timing.mark(settings.implementation)
  report = Report(
    f"Speed of a Gated DeltaNet layer{mark}",
    f"{machine()}, Python {environment['python']}; command: "
    f"`{environment['command']}`. A time is the median of {settings.repeats} "
    f"measurements of up to {settings.inner} back-to-back calls, waited for "
    "once, after a warm-up; inputs rotate among three sets. Every number "
    "stands in the `.jsonl` and `.csv` table beside this file.",
  )
  _add_share(report, rows, settings, mark)
  _add_lengths(report, rows, settings, mark)
  return report


def closing(rows: pd.DataFrame, settings: Any) -> str:
  """The tables printed at the end, one a length."""
  mark = timing.mark(settings.implementation)
  digits = {f"{part} ms": 3 for part in PARTS} | {"share, %": 1}
  lines = []
  for tokens, chosen in rows.groupby("tokens", sort=False):
    times, errors = _by_part(chosen, "median_ms"), _by_part(chosen, "error")
    notes = chosen[chosen.note != ""].groupby(["tokens", "name"]).note
    table = times.add_suffix(" ms").assign(
      **{
        "share, %": 100 * _by_part(chosen, "share")[INVERSE],
        "block error": errors[BLOCK],
        "rule error": errors[RULE],
        "note": notes.agg(lambda x: "; ".join(x.unique())),
      }
    )
    table["note"] = table.note.fillna("")
    lines.append(f"\n{_layer(settings)}, {tokens} tokens; {machine()}{mark}")
    lines.append(tables.aligned(table.droplevel("tokens"), digits))
  return "\n".join(lines)


def plot(rows: pd.DataFrame, title: str) -> Any:
  """Time against length: the block on the left, the rule on the right."""
  import matplotlib.pyplot as plt
  from matplotlib import ticker

  figure, both = plt.subplots(1, 2, figsize=(11, 4.8))
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  colour = dict(zip(rows.name.unique(), colours))
  known = rows[rows.median_ms.notna()]
  handles: dict[Any, Any] = {}
  for axes, part in zip(both, (BLOCK, RULE)):
    for name, line in known[known.part == part].groupby("name", sort=False):
      (handles[name],) = axes.loglog(
        line.tokens, line.median_ms, "o-", color=colour[name], ms=5
      )
    axes.set_xticks(sorted(rows.tokens.unique()))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="tokens", ylabel="milliseconds", title=f"the {part}")
    axes.grid(which="both", alpha=0.2)
  figure.legend(
    handles.values(),
    handles.keys(),
    loc="center left",
    bbox_to_anchor=(1, 0.5),
    fontsize=8,
  )
  figure.suptitle(title)
  figure.tight_layout()
  return figure


def _add_share(
  report: Report, rows: pd.DataFrame, settings: Any, mark: str
) -> None:
  report.section(f"What the inverse costs the layer{mark}")
  before = settings.specs[0]
  report.text(
    f"{_layer(settings)}, one sequence, bfloat16 activations and weights, "
    "gates and state float32. The share of an inverse is its time alone, on "
    "the matrices of as many tokens, over the time of the block around it. "
    f"Before: `{before}`."
  )
  times = _by_part(rows, "median_ms")
  blocks = rows[rows.part == BLOCK].set_index(["tokens", "name"]).index
  first = times[BLOCK].xs(before, level="name")
  table = pd.DataFrame(
    {
      "block, ms": times[BLOCK],
      "of it the inverse, ms": times[INVERSE],
      "share, %": 100 * _by_part(rows, "share")[INVERSE],
      "times as fast as before": 1 / times[BLOCK].div(first, level="tokens"),
    }
  )
  report.table(
    f"Share of the inverse{mark}",
    table[table.index.isin(blocks)],
    measured_on=machine(),
    name="share",
    digits={
      "block, ms": 3,
      "of it the inverse, ms": 3,
      "share, %": 1,
      "times as fast as before": 2,
    },
  )
  report.figure(
    plot(rows, f"{_layer(settings)}, {timing.device_name()}{mark}"),
    "Time against length, both logarithmic. Lower is better.",
  )


def _add_lengths(
  report: Report, rows: pd.DataFrame, settings: Any, mark: str
) -> None:
  report.section(f"Every time and error{mark}")
  report.text(
    "The block is a whole prefill with its cache. The rule alone runs on keys "
    "of every key family, fla's on the same buffers. An error is the RMS error "
    "over the RMS of the output, against the same computation in float32 at "
    f"highest precision with the exact solve. Red: above {FAILS:g}. Memory is "
    "that of intermediate results: as compiled, or the peak that torch "
    "reports. What `xla` names stays in XLA altogether, the recurrence over "
    "chunks too."
  )
  order = {part: i for i, part in enumerate(PARTS)}
  columns = ["part", "name", "implementation"]
  columns += ["median_ms", "lowest_ms", "highest_ms"]
  for tokens, chosen in rows.groupby("tokens", sort=False):
    chosen = chosen.sort_values(
      "part", key=lambda x: x.map(order), kind="stable"
    )
    table = chosen[[*columns, "error", "memory_mb", "note"]]
    report.table(
      f"{tokens} tokens{mark}",
      table.rename(columns=HEADINGS),
      measured_on=machine(),
      name=f"tokens-{tokens}",
      digits=DIGITS,
      bad={"error": table.error > FAILS},
    )


def _layer(settings: Any) -> str:
  return (
    f"layer of hidden {settings.hidden}, Hk {settings.key_heads}, Hv "
    f"{settings.value_heads}, Dk = Dv = {settings.dim}, C {settings.chunk_size}"
  )


def _by_part(rows: pd.DataFrame, field: str) -> pd.DataFrame:
  """A field by length and name in rows, by part in columns."""
  keys = ["tokens", "name"]
  names = pd.MultiIndex.from_frame(rows[keys].drop_duplicates())
  table = rows.set_index([*keys, "part"])[field].unstack("part")
  return table.reindex(index=names, columns=list(PARTS))
