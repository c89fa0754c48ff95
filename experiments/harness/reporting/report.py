"""A self-contained HTML report: headings, text, tables and pictures.

One file, no scripts, no network: pictures are embedded. A table always says
on what its numbers were measured, and every number carries its full precision
in `data-value`, so that a program can read the report too.
"""

import base64
import html
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from experiments.harness import writing
from experiments.harness.processes import hosts
from experiments.harness.reporting import tables
from experiments.harness.reporting.tables import Digits, short

# Inches beyond which a figure is not shrunk to a phone.
WIDE = 7

__all__ = ["Cell", "Report", "render", "short", "shown"]

STYLE = pathlib.Path(__file__).with_suffix(".css").read_text("utf-8")


class Cell(NamedTuple):
  """One entry of a table that wants more than its value."""

  value: Any  # what is shown; numbers are shortened, keeping `data-value` whole
  # decimals after the point; None: two significant digits
  digits: int | None = None
  bad: bool = False  # shown as a failure
  best: bool = False  # shown as the best of its column


class Report:
  """Collects blocks in reading order and writes them as one file."""

  def __init__(self, title: str, summary: str):
    """Starts a report.

    Args:
      title: its heading.
      summary: a paragraph below it, plain text.
    """
    self._title = title
    self._summary = summary
    self._sections: list[str] = []
    self._blocks: list[str] = []

  def section(self, title: str) -> None:
    """Begins a part, listed at the top."""
    self._sections.append(title)
    anchor = f"part-{len(self._sections)}"
    self._blocks.append(f'<h2 id="{anchor}">{html.escape(title)}</h2>')

  def heading(self, title: str) -> None:
    """Begins a sub-part."""
    self._blocks.append(f"<h3>{_inline(title)}</h3>")

  def fold(self, title: str) -> None:
    """Begins what is shown when its title is clicked, up to `unfold`."""
    self._blocks.append(f"<details><summary>{_inline(title)}</summary>")

  def unfold(self) -> None:
    """Ends what `fold` began."""
    self._blocks.append("</details>")

  def text(self, words: str) -> None:
    """Adds a paragraph of plain text; `backquotes` mark code."""
    self._blocks.append(f"<p>{_inline(words)}</p>")

  def table(
    self,
    caption: str,
    columns: pd.DataFrame | Sequence[str],
    rows: Sequence[Sequence[Any]] | None = None,
    *,
    measured_on: str,
    name: str,
    digits: Digits = None,
    bad: pd.DataFrame | Mapping[str, Any] | None = None,
    best: pd.DataFrame | Mapping[str, Any] | None = None,
    source: str = "",
  ) -> None:
    """Adds a table.

    Args:
      caption: what it shows.
      columns: the table, whose named index and columns are shown under their
        names; or headings alone.
      rows: with headings, one entry a column: text, number, None or `Cell`.
      measured_on: the data, machine or count behind the numbers.
      name: the table's HTML id.
      digits: decimals of every column, or by column; None: two significant
        digits.
      bad: by column, which entries are shown as failures. A number that is
        missing is a dash, and "nan" where it is one of these.
      best: by column, which entries stand out, or "min" or "max" for its least
        or greatest number.
      source: the run's table behind the numbers, named below.

    Raises:
      ValueError: a row's length differs from that of `columns`.
    """
    if isinstance(columns, pd.DataFrame):
      bad, best = ({} if marks is None else marks for marks in (bad, best))
      rows = _rows(columns, digits, bad, best)
      columns = list(tables.columns(columns))
    rows = rows or []
    for row in rows:
      if len(row) != len(columns):
        raise ValueError(
          f"table {name!r}: row {list(row)!r} has {len(row)} entries for "
          f"{len(columns)} columns"
        )
    kinds = [
      "number" if any(_is_number(row[i]) for row in rows) else "text"
      for i in range(len(columns))
    ]
    head = "".join(
      f'<th class="{kind}">{_inline(column)}</th>'
      for kind, column in zip(kinds, columns)
    )
    body = "\n".join(
      f"<tr>{''.join(_cell(entry) for entry in row)}</tr>" for row in rows
    )
    if source:
      measured_on = f"{measured_on} Rows: `{source}.csv`."
    self._blocks.append(
      f'<div class="scroll"><table id="{html.escape(name)}">'
      f"<caption>{_inline(caption)}</caption>\n"
      f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
      f'\n<p class="measured">Measured on: {_inline(measured_on)}</p>'
    )

  def figure(
    self, picture: Any, caption: str, *, photographic: bool = False
  ) -> None:
    """Embeds a matplotlib figure and closes it.

    Args:
      picture: the figure.
      caption: what to see in it; also its alternative text.
      photographic: as JPEG, for photographs; otherwise as PNG.
    """
    kind = "jpeg" if photographic else "png"
    width = "wide" if picture.get_size_inches()[0] > WIDE else "narrow"
    data = base64.b64encode(render(picture, kind)).decode()
    source = f"data:image/{kind};base64,{data}"
    self._blocks.append(
      f'<figure><div class="scroll"><img class="{width}" '
      f'alt="{html.escape(caption)}" src="{source}"></div>'
      f"<figcaption>{_inline(caption)}</figcaption></figure>"
    )

  def write(self, path: pathlib.Path) -> pathlib.Path:
    """Writes the report, of many processes the first, and returns its path."""
    if not hosts.is_first():
      return path
    links = "".join(
      f'<a href="#part-{i}">{html.escape(title)}</a>'
      for i, title in enumerate(self._sections, 1)
    )
    return writing.write(
      path,
      '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f"<title>{html.escape(self._title)}</title><style>{STYLE}</style>"
      f"</head>\n<body>\n{self._head()}\n<nav>{links}</nav>\n"
      f"{self._content()}\n</body></html>\n",
    )

  def leave(self, folder: pathlib.Path) -> None:
    """Writes `report.html` into a run's folder and prints where: its end."""
    print(f"report: {shown(self.write(folder / 'report.html'))}")

  def _repr_html_(self) -> str:
    """What a notebook shows: the page without its style and links."""
    return f"{self._head()}\n{self._content()}"

  def _head(self) -> str:
    return (
      f"<h1>{html.escape(self._title)}</h1>\n<p>{_inline(self._summary)}</p>"
    )

  def _content(self) -> str:
    return "\n".join(self._blocks)


def render(picture: Any, kind: str) -> bytes:
  """A matplotlib figure as "png" or "jpeg" bytes; closes it."""
  import matplotlib.pyplot as plt

  photograph = {"dpi": 120, "pil_kwargs": {"quality": 85}}
  settings: dict[str, Any] = photograph if kind == "jpeg" else {"dpi": 110}
  buffer = io.BytesIO()
  picture.savefig(buffer, format=kind, bbox_inches="tight", **settings)
  plt.close(picture)
  return buffer.getvalue()


def shown(path: pathlib.Path) -> str:
  """The path from here where it is below, else in full."""
  here, full = pathlib.Path.cwd(), path.resolve()
  return str(full.relative_to(here) if full.is_relative_to(here) else full)


def _rows(
  table: pd.DataFrame,
  digits: Digits,
  bad: pd.DataFrame | Mapping[str, Any],
  best: pd.DataFrame | Mapping[str, Any],
) -> list[tuple[Cell, ...]]:
  """A frame's entries with how each is shown."""
  found = tables.columns(table)
  failed, good = (
    {str(name): marks for name, marks in by_column.items()}
    for by_column in (bad, best)
  )
  if unknown := (failed.keys() | good.keys()) - found.keys():
    raise ValueError(f"the table has no column {min(unknown)!r}")
  shown = []
  for name, values in found.items():
    places = tables.digits_of(digits, name)
    marks = (_marks(by.get(name), values) for by in (failed, good))
    shown.append(
      [Cell(x, places, bool(a), bool(b)) for x, a, b in zip(values, *marks)]
    )
  return list(zip(*shown))


def _marks(marks: Any, values: list[Any]) -> list[bool]:
  """Which entries of a column are marked."""
  if marks is None:
    return [False] * len(values)
  if isinstance(marks, str):
    return list(pd.Series(values) == getattr(pd.Series(values), marks)())
  return list(marks)


def _is_number(entry: Any) -> bool:
  value = entry.value if isinstance(entry, Cell) else entry
  return value is not None and not isinstance(value, str | bool)


def _cell(entry: Any) -> str:
  cell = entry if isinstance(entry, Cell) else Cell(entry)
  value = cell.value
  kind = (" bad" if cell.bad else "") + (" best" if cell.best else "")
  if tables.missing(value) and not (cell.bad and value is not None):
    return f'<td class="number{kind}">-</td>'
  if not _is_number(value):
    return f'<td class="text{kind}">{_inline(str(value))}</td>'
  number = float(value)
  words = "nan" if tables.missing(value) else tables.words(value, cell.digits)
  return f'<td class="number{kind}" data-value="{number!r}">{words}</td>'


def _inline(words: str) -> str:
  """Escapes text and turns `code` into <code>."""
  parts = html.escape(words).split("`")
  return "".join(
    f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)
  )
