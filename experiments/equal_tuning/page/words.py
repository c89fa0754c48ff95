"""What the tables of equal tuning have in their cells, as Markdown."""

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.tables import OWN

_VERDICTS = tables.AHEAD, tables.LEVEL, tables.BEHIND


def wide(table: str) -> str:
  """A table that is scrolled where the page is narrow."""
  return f'<div class="numbers" markdown>\n\n{table}\n\n</div>'


def bold(words: str, best: bool) -> str:
  """Words, in bold where they are the best."""
  return f"**{words}**" if best else words


def code(method: str) -> str:
  """A method's name, that of a preset as code."""
  name, called, form = method.removeprefix(f"{OWN}, ").partition("()")
  return f"`{name}()`{form}" if called else method


def scored(method: str, value: float, digits: int) -> str:
  """A method and its score, apart where the name ends with a number."""
  colon = ":" if method[-1].isdigit() else ""
  return f"{code(method)}{colon} {value:.{digits}f}"


def lead(value: float, low: float, high: float, digits: int) -> str:
  """A lead with its interval."""
  mean, *ends = (f"{each:+.{digits}f}" for each in (value, low, high))
  return f"{mean} ({', '.join(ends)})"


def counted(verdicts: pd.Series) -> str:
  """How many are ahead / level / behind."""
  found = verdicts.value_counts()
  return " / ".join(str(found.get(word, 0)) for word in _VERDICTS)


def distance(value: float) -> str:
  """An LPIPS, which is below 1, without its 0."""
  return f"{value:.3f}".removeprefix("0")


def both(left: str, right: str) -> str:
  """A cell of two scores; of one word for both, that."""
  return left if left == right else f"{left} / {right}"


def absent(rows: pd.DataFrame, method: str, operator: str) -> str:
  """Why there is no number."""
  if ((rows["method"] == method) & (rows["operator"] == operator)).any():
    return "diverged"
  # DDRM has no form for the one, others were not run.
  none = method == "DDRM" and operator.startswith("motion")
  return "refused" if none else "-"
