"""The pictures of `lm_accuracy`."""

from typing import Any

import numpy as np
import pandas as pd

from experiments.evaluate_lm import plot

LEAST = 1e-9  # row sums below it are drawn there


def grid(rows: pd.DataFrame) -> Any:
  """Perplexity over N (down) and S (across), by chunk size and mask."""
  from matplotlib.colors import LogNorm
  from matplotlib.figure import Figure

  sizes, orders = rows["chunk_size"].unique(), rows["order"].unique()
  picture = Figure(
    figsize=(1.6 + 2.5 * len(sizes), 1.2 + 0.9 * len(orders)),
    layout="constrained",
  )
  panels = picture.subplots(2, len(sizes), squeeze=False)
  finite = rows["perplexity"][np.isfinite(rows["perplexity"])]
  low, high = (finite.min(), finite.max()) if len(finite) else (1.0, 2.0)
  scale = LogNorm(low * 0.99, high * 1.01)
  for (size, masked), own in rows.groupby(["chunk_size", "masked"]):
    panel = panels[0 if masked else 1, list(sizes).index(size)]
    values = own.pivot(index="order", columns="terms", values="perplexity")
    panel.imshow(values, norm=scale, cmap="viridis_r", aspect="auto")
    for (n, s), value in np.ndenumerate(values):
      good = np.isfinite(value)
      panel.text(
        s,
        n,
        f"{value:.4g}" if good else "not finite",
        ha="center",
        va="center",
        fontsize=8,
        color="white" if good and value > 3 * low else "black",
      )
    panel.set_xticks(range(values.shape[1]), values.columns)
    panel.set_yticks(range(values.shape[0]), values.index)
    mask = "band mask" if masked else "no mask"
    panel.set_title(f"C = {size}, {mask}", fontsize=9)
    panel.set_facecolor("lightgray")
  for panel in panels[-1]:
    panel.set_xlabel("S")
  for panel in panels[:, 0]:
    panel.set_ylabel("N")
  return picture


def pareto(rows: pd.DataFrame) -> Any:
  """Worst ratio against products, a panel for each group, without float64."""
  rows = rows[rows["format"] != "float64"]
  names = {"group": "across", "worst_db": "value"}
  points = rows.rename(columns=names).assign(down="", filled=False)
  picture = plot.by_products(
    points, "worst signal-to-noise ratio, dB", log=False
  )
  for panel in picture.axes:
    panel.axhline(0, color="black", linewidth=0.8)
  return picture


def certificates(rows: pd.DataFrame) -> Any:
  """Certified row sums against true ones, matrix by matrix."""
  from matplotlib.figure import Figure

  picture = Figure(figsize=(6.4, 4.2), layout="constrained")
  panel = picture.subplots()
  rows = rows[np.isfinite(rows[["row_sum", "certified"]]).all(axis=1)]
  for (method, form), own in rows.groupby(["method", "format"], sort=False):
    points = own[["row_sum", "certified"]].clip(lower=LEAST)
    label = f"{method}, {form}"
    panel.loglog(*points.to_numpy().T, ".", markersize=3, label=label)
  limits = LEAST, rows[["row_sum", "certified"]].max(axis=None)
  panel.plot(limits, limits, color="black", linewidth=1, label="equal")
  panel.set_xlabel("true largest row sum of |T - X|")
  panel.set_ylabel("certified")
  panel.legend(fontsize=8)
  return picture
