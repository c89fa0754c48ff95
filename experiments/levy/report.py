"""The rows of the study of Levy processes as tables, a figure and a page."""

import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Columns, their headings and digits.
COLUMNS = {
  "calls": ("calls", 0),
  "products": ("Jacobian products", 0),
  "gap": ("gap, dB", 2),
  "gap_low": ("from", 2),
  "gap_high": ("to", 2),
  "hpd": ("densest 90 %, points off", 1),
  "central": ("central 90 %, points off", 1),
  "crps": ("CRPS / exact", 3),
  "spread": ("spread / exact", 3),
  "seconds": ("seconds", 1),
}


def write(run: record.Run, settings: Any) -> None:
  """Writes `report.html` from the table, prints its path."""
  rows = run.frame("levy")
  about = (
    f"{settings.signals} signals of {settings.length} points, "
    f"{settings.samples} samples each, seed {settings.seed}"
  )
  page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    origin=run.origin(),
    mark="",
    plot=plot(rows),
    tables=[*_tables(rows, about)],
  ).leave(run.folder)


def _tables(rows: pd.DataFrame, about: str) -> Iterator[page.Part]:
  for (law, operator), own in rows.groupby(["law", "operator"], sort=False):
    yield page.table(
      f"{law}, {operator}",
      table(own),
      digits=dict(COLUMNS.values()),
      measured_on=about,
      name=f"{law}-{operator}".replace(" ", "-").replace("'", ""),
    )


def table(rows: pd.DataFrame) -> pd.DataFrame:
  """A problem's table by method, the smallest gap first, failures last."""
  rows = rows.sort_values("gap", kind="stable", ignore_index=True)
  notes = (": " + rows["note"]).where(rows["note"] != "", "")
  found = rows[[*COLUMNS]].astype(float)
  found = found.rename(
    columns={name: head for name, (head, _) in COLUMNS.items()}
  )
  found.insert(0, "method", names(rows) + notes)
  return found


def names(rows: pd.DataFrame) -> pd.Series:
  """Method, setting and, where there are several, budget."""
  words = rows["method"] + " " + rows["setting"]
  several = rows.groupby(["method", "setting"])["budget"].transform("nunique")
  budget = " " + rows["budget"].astype(str)
  return (words + budget.where(several > 1, "")).str.strip()


def plot(rows: pd.DataFrame) -> "Figure":
  """Gap over central coverage: a panel for each law, a colour each method."""
  import matplotlib.pyplot as plt

  laws = rows["law"].unique()
  figure, panels = plt.subplots(
    1,
    len(laws),
    figsize=(3.6 * len(laws) + 1.6, 4),
    squeeze=False,
    sharey=True,
    layout="constrained",
  )
  rows = rows.assign(name=names(rows)).dropna(subset=["gap"])
  for law, axes in zip(laws, panels[0]):
    own = rows[rows["law"] == law]
    for number, (name, points) in enumerate(own.groupby("name", sort=False)):
      axes.scatter(
        points["central"],
        points["gap"],
        s=36,
        marker="*" if name == "Gibbs" else "osDv^"[number // 10],
        color=f"C{number % 10}",
        label=name,
      )
    axes.axvspan(-3, 3, color="0.92", zorder=0)
    axes.set(title=law, xlabel="central 90 % intervals, points off")
  panels[0][0].set(ylabel="gap to the least error, dB")
  handles, labels = panels[0][0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", fontsize=7)
  return figure
