"""Results in pages of Markdown: tables, and the block that a command writes."""

import pathlib
from collections.abc import Sequence

from experiments.harness import writing


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table of words."""
  first, *rest = [f"| {' | '.join(line)} |" for line in (head, *rows)]
  return "\n".join([first, f"|{'---|' * len(head)}", *rest])


def put(page: pathlib.Path, block: str, *, begin: str, end: str) -> None:
  """Replaces what lies between two comments of a page, each there once."""
  before, rest = page.read_text().split(begin)
  _, after = rest.split(end)
  writing.write(page, f"{before}{begin}\n\n{block}\n\n{end}{after}")
