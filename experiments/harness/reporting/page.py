"""Reports written as Markdown files with holes for numbers, tables and figures.

A study keeps the words of its report in a `.md` file beside its code:

    ## Overflow{mark}

    Matrices of every family, keys of width {settings.width}. Red: not finite.

    [Entries that are not finite](counts "{settings.count} matrices")

    ![Lower and further left is better.](plot)

    <details> How it was counted

    {more}

    </details>

Holes in words are those of `str.format`. A link takes a table, its caption and
what was measured on; an image takes a matplotlib figure under its caption; a
paragraph that is one hole takes a `Part`, a text, or a list of them. What is
None is left out, and so is a section (`##`) all of whose such holes are. What
stands between `<details>` and its end is folded under the title beside it.
"""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from experiments.harness.reporting.report import Report

Part = Callable[[Report], None]  # adds something to a report
_HOLE = re.compile(
  r"\{(?P<part>\w+)\}|"
  r"!\[(?P<words>.*)\]\((?P<figure>\w+)\)|"
  r'\[(?P<caption>.*)\]\((?P<table>\w+) "(?P<data>.*)"\)',
  re.S,
)


class Table(NamedTuple):
  """A table whose caption stands in the file; options of `Report.table`."""

  frame: pd.DataFrame
  digits: Any = None
  bad: Any = None
  best: Any = None


class Photographs(NamedTuple):
  """A figure of photographs, whose caption stands in the file."""

  picture: Any


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
    holes = [
      _filled(hole, values) for hole in map(_HOLE.fullmatch, blocks) if hole
    ]
    if not holes or any(parts for parts in holes):
      for block in filter(None, blocks):
        _add(report, block, values)


def _add(report: Report, block: str, values: Mapping[str, Any]) -> None:
  if hole := _HOLE.fullmatch(block):
    for part in _filled(hole, values):
      report.text(part) if isinstance(part, str) else part(report)
    return
  if block == "</details>":
    report.unfold()
    return
  marks = {
    "<details> ": report.fold,
    "## ": report.section,
    "### ": report.heading,
    "": report.text,
  }
  mark = next(mark for mark in marks if block.startswith(mark))
  marks[mark](_said(block.removeprefix(mark), values))


def _filled(hole: re.Match[str], values: Mapping[str, Any]) -> list[Part | str]:
  """What fills a paragraph that is a hole."""
  name = hole["part"] or hole["figure"] or hole["table"]
  found = values[name]
  if hole["figure"] and found is not None:
    seen = isinstance(found, Photographs)
    picture = found.picture if seen else found
    words = _said(hole["words"], values)
    found = figure(picture, words, photographic=seen)
  if hole["table"] and found is not None:
    found = found if isinstance(found, Table) else Table(found)
    found = table(
      _said(hole["caption"], values),
      found.frame,
      digits=found.digits,
      bad=found.bad,
      best=found.best,
      measured_on=_said(hole["data"], values),
      name=name.replace("_", "-"),
    )
  parts = found if isinstance(found, list) else [found]
  return [part for part in parts if part is not None]


def _said(words: str, values: Mapping[str, Any]) -> str:
  return " ".join(words.split()).format_map(values)
