"""Perception against distortion: a curve for each method over its budgets."""

from typing import Any

import pandas as pd

from experiments.equal_tuning import tables
from experiments.equal_tuning.tables import OWN, SCORES

CAPTION = (
  "Mean PSNR and LPIPS over all operators, a curve for each method over its "
  "budgets, larger marks for larger ones; tuned for PSNR and for LPIPS. Better "
  "is up and to the right; what is more than 6 dB or 0.25 behind the best is "
  "outside. Budgets that were not run on every operator, and methods without a "
  "form for one, are left out."
)
_REACH = (
  6.0,
  0.25,
)  # of the axes, in PSNR and LPIPS; the worst would hide the rest


def plane(rows: pd.DataFrame) -> Any:
  """PSNR against LPIPS, a panel for each of what is tuned for."""
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(
    1, len(SCORES), figsize=(11, 4.6), sharey=True, layout="constrained"
  )
  colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
  names = list(dict.fromkeys(rows["method"]))
  for axis, criterion in zip(axes, SCORES):
    found = tables.plane(rows, criterion)
    for method, own in found.groupby("method", sort=False):
      number = names.index(method)
      ours = str(method).startswith(OWN)
      axis.plot(
        own["psnr"],
        own["lpips"],
        color=colours[number % len(colours)],
        linewidth=2.2 if ours else 1,
        linestyle="-" if ours else "--",
        label=method,
      )
      sizes = [12 + 18 * i for i in range(len(own))]
      axis.scatter(
        own["psnr"], own["lpips"], sizes, [colours[number % len(colours)]]
      )
    axis.set(title=f"tuned for {criterion}", xlabel="PSNR [dB]")
    if len(found):
      most, least = found["psnr"].max(), found["lpips"].min()
      axis.set_xlim(most - _REACH[0], most + 0.3)
      axis.set_ylim(least - 0.02, least + _REACH[1])
    axis.grid(alpha=0.3)
  axes[0].set_ylabel("LPIPS (alex)")
  axes[0].invert_yaxis()
  handles, labels = axes[-1].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right center", fontsize=8)
  return figure
