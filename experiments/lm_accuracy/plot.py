"""The pictures of `lm_accuracy`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.lm_accuracy.errors import GROUPS

Table = Sequence[Mapping[str, Any]]
MARKS = "osD^vPX*"
LEAST = 1e-9  # row sums below it are drawn there


def grid(rows: Table) -> Any:
  """Perplexity over N (down) and S (across), a panel a chunk size and mask.

  Args:
    rows: of the table "grid", of one group.

  Returns:
    A matplotlib figure.
  """
  from matplotlib.colors import LogNorm
  from matplotlib.figure import Figure

  sizes = list(dict.fromkeys(row["chunk_size"] for row in rows))
  orders = sorted({row["order"] for row in rows})
  terms = sorted({row["terms"] for row in rows})
  picture = Figure(
    figsize=(1.6 + 2.5 * len(sizes), 1.2 + 0.9 * len(orders)),
    layout="constrained",
  )
  panels = picture.subplots(2, len(sizes), squeeze=False)
  finite = [_number(r["perplexity"]) for r in rows]
  finite = [value for value in finite if math.isfinite(value)]
  low = min(finite, default=1.0)
  scale = LogNorm(low * 0.99, max(finite, default=2.0) * 1.01)
  for i, masked in enumerate((True, False)):
    for j, size in enumerate(sizes):
      panel = panels[i, j]
      values = np.full((len(orders), len(terms)), np.nan)
      for row in rows:
        if (row["chunk_size"], row["masked"]) == (size, masked):
          at = orders.index(row["order"]), terms.index(row["terms"])
          values[at] = _number(row["perplexity"])
      panel.imshow(values, norm=scale, cmap="viridis_r", aspect="auto")
      for (n, s), value in np.ndenumerate(values):
        words = f"{value:.4g}" if math.isfinite(value) else "not finite"
        light = math.isfinite(value) and value > 3 * low
        panel.text(
          s,
          n,
          words,
          ha="center",
          va="center",
          fontsize=8,
          color="white" if light else "black",
        )
      panel.set_xticks(range(len(terms)), terms)
      panel.set_yticks(range(len(orders)), orders)
      panel.set_title(
        f"C = {size}, {'band mask' if masked else 'no mask'}", fontsize=9
      )
      panel.set_facecolor("lightgray")
  for panel in panels[-1]:
    panel.set_xlabel("S")
  for panel in panels[:, 0]:
    panel.set_ylabel("N")
  return picture


def pareto(rows: Table) -> Any:
  """Worst ratio against products, a panel a group; float64 is left out.

  Args:
    rows: of the table "errors".
  """
  from matplotlib.figure import Figure

  rows = [row for row in rows if row["format"] != "float64"]
  groups = [g for g in GROUPS if any(row["group"] == g for row in rows)]
  forms = list(dict.fromkeys(row["format"] for row in rows))
  methods = list(dict.fromkeys(row["method"] for row in rows))
  picture = Figure(figsize=(1.9 + 4 * len(groups), 3.8), layout="constrained")
  panels = picture.subplots(1, len(groups), sharey=True, squeeze=False)[0]
  for panel, group in zip(panels, groups):
    for row in rows:
      worst = _number(row["worst_db"])
      if row["group"] != group or not math.isfinite(worst):
        continue
      panel.plot(
        row["products"],
        worst,
        MARKS[methods.index(row["method"])],
        color=f"C{forms.index(row['format'])}",
        markerfacecolor="none",
      )
    products = sorted({row["products"] for row in rows})
    panel.set_xscale("log")
    panel.set_xticks(products, products)
    panel.set_xticks([], minor=True)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_title(group, fontsize=9)
    panel.set_xlabel("products")
    panel.grid(alpha=0.3)
  panels[0].set_ylabel("worst signal-to-noise ratio, dB")
  _legend(picture, forms, methods)
  return picture


def certificates(rows: Table) -> Any:
  """Certified row sums against true ones, matrix by matrix.

  Args:
    rows: of the table "certificates".
  """
  from matplotlib.figure import Figure

  picture = Figure(figsize=(6.4, 4.2), layout="constrained")
  panel = picture.subplots()
  ends = [LEAST]
  for method, form in dict.fromkeys((r["method"], r["format"]) for r in rows):
    pairs = [
      (_number(r["row_sum"]), _number(r["certified"]))
      for r in rows
      if (r["method"], r["format"]) == (method, form)
    ]
    points = np.array([pair for pair in pairs if np.isfinite(pair).all()])
    if len(points):
      panel.loglog(
        *np.maximum(points, LEAST).T,
        ".",
        markersize=3,
        label=f"{method}, {form}",
      )
      ends.append(points.max())
  limits = LEAST, max(ends)
  panel.plot(limits, limits, color="black", linewidth=1, label="equal")
  panel.set_xlabel("true largest row sum of |T - X|")
  panel.set_ylabel("certified")
  panel.legend(fontsize=8)
  return picture


def _legend(picture: Any, forms: list[str], methods: list[str]) -> None:
  from matplotlib.lines import Line2D

  handles = [
    Line2D([], [], color=f"C{i}", linewidth=3, label=form)
    for i, form in enumerate(forms)
  ]
  handles += [
    Line2D(
      [],
      [],
      color="black",
      marker=MARKS[i],
      linestyle="",
      markerfacecolor="none",
      label=method,
    )
    for i, method in enumerate(methods)
  ]
  picture.legend(handles=handles, loc="outside right center", fontsize=8)


def _number(value: Any) -> float:
  return float(value)  # tables hold infinite and undefined ones as words
