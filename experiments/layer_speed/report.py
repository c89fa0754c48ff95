"""What the study of the layer shows: a table printed last, and its report."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.harness.speed import timing
from experiments.harness.speed.timing import DIGITS, HEADINGS, machine
from experiments.layer_speed.parts import BLOCK, INVERSE, PARTS, RULE

FAILS = 0.1  # a relative error above this is shown as a failure


def build(
  rows: pd.DataFrame, settings: Any, environment: Mapping[str, Any]
) -> Report:
  """The whole report, from `report.md`."""
  mark = timing.mark(settings.implementation)
  title = f"{_layer(settings)}, {timing.device_name()}{mark}"
  return page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    mark=mark,
    machine=machine(),
    environment=environment,
    settings=settings,
    layer=_layer(settings),
    fails=FAILS,
    share=_share(rows, settings.specs[0]),
    plot=plot(rows, title),
    lengths=_lengths(rows, mark),
  )


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


def _share(rows: pd.DataFrame, before: str) -> page.Table:
  """What the inverse costs the block, by length and case."""
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
  digits = dict(zip(table, (3, 3, 1, 2)))
  return page.Table(table[table.index.isin(blocks)], digits)


def _lengths(rows: pd.DataFrame, mark: str) -> list[page.Part]:
  """Every row, a table for each length, the whole layer before its parts."""
  parts = rows.part.astype(pd.CategoricalDtype(PARTS, ordered=True))
  rows = rows.assign(part=parts).sort_values("part", kind="stable")
  columns = ["part", "name", "implementation", "median_ms", "lowest_ms"]
  columns += ["highest_ms", "error", "memory_mb", "note"]
  by_length = rows.astype({"part": str}).groupby("tokens", sort=False)
  return [
    page.table(
      f"{tokens} tokens{mark}",
      chosen[columns].rename(columns=HEADINGS),
      measured_on=machine(),
      name=f"tokens-{tokens}",
      digits=DIGITS,
      bad={"error": chosen.error > FAILS},
    )
    for tokens, chosen in by_length
  ]


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
