"""Reports written as Markdown files with holes for numbers, tables and figures.

A study keeps the words of its report in a `.md` file beside its code:

    ## Overflow{mark}

    Matrices of every family, keys of width {settings.width}. Red: not finite.

    {counts}

    ![Lower and further left is better.](plot)

Holes in words are those of `str.format`. A paragraph that is one hole takes a
`Part`, a text, or a list of them; an image takes a matplotlib figure. What is
None is left out, and so is a section (`##`) all of whose such holes are.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from experiments.harness.report import Report

Part = Callable[[Report], None]  # adds something to a report
_HOLE = re.compile(r"\{(\w+)\}|!\[(.*)\]\((\w+)\)", re.S)


def table(*arguments: Any, **options: Any) -> Part:
  """A table as a part of a page; arguments of `Report.table`."""
  return lambda report: report.table(*arguments, **options)


def figure(*arguments: Any, **options: Any) -> Part:
  """A figure as a part of a page; arguments of `Report.figure`."""
  return lambda report: report.figure(*arguments, **options)


def begin(path: pathlib.Path, **values: Any) -> Report:
  """A report whose file begins with `# title` and a paragraph below it."""
  title, summary, rest = path.read_text(encoding="utf-8").split("\n\n", 2)
  title = title.removeprefix("# ")
  report = Report(_said(title, values), _said(summary, values))
  _fill(report, rest, values)
  return report


def add(report: Report, path: pathlib.Path, **values: Any) -> None:
  """Adds a file's parts to a report."""
  _fill(report, path.read_text(encoding="utf-8"), values)


def _fill(report: Report, text: str, values: Mapping[str, Any]) -> None:
  for section in re.split(r"(?m)^(?=## )", text):
    blocks = section.strip().split("\n\n")
    holes = [x[1] or x[3] for x in map(_HOLE.fullmatch, blocks) if x]
    if not holes or any(values[hole] is not None for hole in holes):
      for block in filter(None, blocks):
        _add(report, block, values)


def _add(report: Report, block: str, values: Mapping[str, Any]) -> None:
  if hole := _HOLE.fullmatch(block):
    found = values[hole[1] or hole[3]]
    if hole[3] and found is not None:
      found = figure(found, _said(hole[2], values))
    parts = found if isinstance(found, list) else [found]
    for part in parts:
      if part is not None:
        report.text(part) if isinstance(part, str) else part(report)
    return
  marks = {"## ": report.section, "### ": report.heading, "": report.text}
  mark = next(mark for mark in marks if block.startswith(mark))
  marks[mark](_said(block.removeprefix(mark), values))


def _said(words: str, values: Mapping[str, Any]) -> str:
  return " ".join(words.split()).format_map(values)
