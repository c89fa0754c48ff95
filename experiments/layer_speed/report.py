"""What the study of the layer shows: a table printed last, and its report."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.harness.report import Cell, Report
from experiments.inverse_speed.inverse_part import device_name
from experiments.inverse_speed.tables import aligned, machine, mark, text
from experiments.layer_speed.parts import BLOCK, INVERSE, RULE, LayerRow

FAILS = 0.1  # a relative error above this is shown as a failure

Found = Mapping[tuple[int, str, str], LayerRow]


def build(
  rows: Sequence[LayerRow], settings: Any, environment: Mapping[str, Any]
) -> Report:
  """The whole report.

  Args:
    rows: all that were measured.
    settings: of `experiments.layer_speed`.
    environment: of the run.
  """
  report = Report(
    f"Speed of a Gated DeltaNet layer{mark(settings)}",
    f"{machine()}, Python {environment['python']}; command: "
    f"`{environment['command']}`. A time is the median of {settings.repeats} "
    f"measurements of up to {settings.inner} back-to-back calls, waited for "
    "once, after a warm-up; inputs rotate among three sets. Every number "
    "stands in the `.jsonl` and `.csv` table beside this file.",
  )
  found = _indexed(rows)
  _add_share(report, found, settings)
  _add_lengths(report, found, settings)
  return report


def closing(rows: Sequence[LayerRow], settings: Any) -> str:
  """The table printed at the end."""
  found = _indexed(rows)
  heads = ["name", "block ms", "rule ms", "inverse ms", "share"]
  heads += ["block error", "rule error", "note"]
  lines = []
  for tokens in settings.tokens:
    body = []
    for name in _names(found, tokens):
      block, rule, inverse = _parts(found, tokens, name)
      share = _get(inverse, "share")
      body.append(
        [
          name,
          *(text(_get(x, "median_ms"), 3) for x in (block, rule, inverse)),
          "-" if share is None else f"{share:.1%}",
          *(text(_get(x, "error")) for x in (block, rule)),
          _note(block, rule, inverse),
        ]
      )
    title = f"{_layer(settings)}, {tokens} tokens; {machine()}{mark(settings)}"
    lines += [f"\n{title}", *aligned(heads, body)]
  return "\n".join(lines)


def plot(rows: Sequence[LayerRow], title: str) -> Any:
  """Time against length: the block on the left, the rule on the right."""
  import matplotlib.pyplot as plt
  from matplotlib import ticker

  figure, both = plt.subplots(1, 2, figsize=(11, 4.8))
  names = list(dict.fromkeys(row.name for row in rows))
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  for axes, part in zip(both, (BLOCK, RULE)):
    for i, name in enumerate(names):
      points = [
        (row.tokens, row.median_ms)
        for row in rows
        if (row.part, row.name) == (part, name) and row.median_ms is not None
      ]
      if points:
        axes.loglog(*zip(*points), "o-", color=colours[i], label=name, ms=5)
    lengths = sorted({row.tokens for row in rows})
    axes.set_xticks(lengths, [f"{n}" for n in lengths])
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="tokens", ylabel="milliseconds", title=f"the {part}")
    axes.grid(which="both", alpha=0.2)
  lines = [line for axes in both for line in axes.get_lines()]
  handles = {line.get_label(): line for line in lines}
  shown = {name: handles[name] for name in names if name in handles}
  figure.legend(
    shown.values(),
    shown.keys(),
    loc="center left",
    bbox_to_anchor=(1, 0.5),
    fontsize=8,
  )
  figure.suptitle(title)
  figure.tight_layout()
  return figure


def _add_share(report: Report, found: Found, settings: Any) -> None:
  report.section(f"What the inverse costs the layer{mark(settings)}")
  before = settings.specs[0]
  report.text(
    f"{_layer(settings)}, one sequence, bfloat16 activations and weights, "
    "gates and state float32. The share of an inverse is its time alone, on "
    "the matrices of as many tokens, over the time of the block around it. "
    f"Before: `{before}`."
  )
  heads = ["tokens", "name", "block, ms", "of it the inverse, ms", "share, %"]
  body = []
  for tokens in settings.tokens:
    first = _get(found.get((tokens, BLOCK, before)), "median_ms")
    for name in _names(found, tokens):
      block, _, inverse = _parts(found, tokens, name)
      time, share = _get(block, "median_ms"), _get(inverse, "share")
      if block is None:
        continue
      known = time is not None and first is not None
      body.append(
        [
          tokens,
          name,
          Cell(time, 3),
          Cell(_get(inverse, "median_ms"), 3),
          Cell(None if share is None else 100 * share, 1),
          Cell(first / time if known else None, 2),
        ]
      )
  report.table(
    f"Share of the inverse{mark(settings)}",
    [*heads, "times as fast as before"],
    body,
    measured_on=machine(),
    name="share",
  )
  rows = list(found.values())
  report.figure(
    plot(rows, f"{_layer(settings)}, {device_name()}{mark(settings)}"),
    "Time against length, both logarithmic. Lower is better.",
  )


def _add_lengths(report: Report, found: Found, settings: Any) -> None:
  report.section(f"Every time and error{mark(settings)}")
  report.text(
    "The block is a whole prefill with its cache. The rule alone runs on keys "
    "of every key family, fla's on the same buffers. An error is the RMS error "
    "over the RMS of the output, against the same computation in float32 at "
    f"highest precision with the exact solve. Red: above {FAILS:g}. Memory is "
    "that of intermediate results: as compiled, or the peak that torch "
    "reports. What `xla` names stays in XLA altogether, the recurrence over "
    "chunks too."
  )
  heads = "part,name,runs in,ms,lowest,highest,error,memory in MB,note"
  for tokens in settings.tokens:
    report.table(
      f"{tokens} tokens{mark(settings)}",
      heads.split(","),
      [
        [
          row.part,
          row.name,
          row.implementation,
          *(Cell(x, 3) for x in (row.median_ms, row.lowest_ms, row.highest_ms)),
          Cell(row.error, bad=row.error is not None and row.error > FAILS),
          Cell(row.memory_mb, 0),
          row.note,
        ]
        for part in (BLOCK, RULE, INVERSE)
        for row in found.values()
        if (row.tokens, row.part) == (tokens, part)
      ],
      measured_on=machine(),
      name=f"tokens-{tokens}",
    )


def _layer(settings: Any) -> str:
  return (
    f"layer of hidden {settings.hidden}, Hk {settings.key_heads}, Hv "
    f"{settings.value_heads}, Dk = Dv = {settings.dim}, C {settings.chunk_size}"
  )


def _indexed(rows: Sequence[LayerRow]) -> Found:
  return {(row.tokens, row.part, row.name): row for row in rows}


def _names(found: Found, tokens: int) -> list[str]:
  return list(dict.fromkeys(name for n, _, name in found if n == tokens))


def _parts(found: Found, tokens: int, name: str) -> list[LayerRow | None]:
  return [found.get((tokens, part, name)) for part in (BLOCK, RULE, INVERSE)]


def _get(row: LayerRow | None, field: str) -> Any:
  return None if row is None else getattr(row, field)


def _note(*rows: LayerRow | None) -> str:
  return "; ".join(dict.fromkeys(row.note for row in rows if row and row.note))
