"""The picture of `evaluate_lm`: divergence against products of the inverse."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.evaluate_lm.sweep import weights_words
from neumann_jax.chunk_inverse.inverse_spec import PRECISIONS
from neumann_jax.chunk_inverse.spec_names import QUANTS

FLOOR = 1e-9  # nats; below it float32 logits cannot tell
CAPTION = (
  "Mean KL from the exact float32 inverse, in nats a token, against the C x C "
  "products of the inverse. Colours are operand formats, shapes are methods; "
  "filled shapes are refined. A cross at the top edge overflowed; a divergence "
  "below 1e-9, where float32 logits cannot tell, is drawn at 1e-9."
)
METHODS = ("ladder", "newton", "banded", "banded-masked", "exact")
MARKERS = dict(zip(METHODS, "osD^v"))
COLOURS = {
  name: f"C{i}"
  for i, name in enumerate(
    (*PRECISIONS, *(name for name, quant in QUANTS.items() if quant.integer))
  )
}


def figure(rows: Sequence[Any]) -> Any:
  """One panel for each quantisation of the weights (down) and chunk size.

  Args:
    rows: of `evaluate_report.Summary`.

  Returns:
    A matplotlib figure.
  """
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  down = list(dict.fromkeys(row.weights for row in rows))
  across = list(dict.fromkeys(row.chunk_size for row in rows))
  picture = Figure(
    figsize=(2.4 + 3.4 * len(across), 0.6 + 2.9 * len(down)),
    layout="constrained",
  )
  panels = picture.subplots(
    len(down), len(across), sharex=True, sharey=True, squeeze=False
  )
  shown = [_clipped(row.mean_kl) for row in rows if row.products]
  finite = [value for value in shown if math.isfinite(value)]
  top = 10 * max(finite, default=1.0)
  used: dict[str, Any] = {}
  known = {(row.weights, row.chunk_size) for row in rows if row.products}
  lowest = {}
  for i, weights in enumerate(down):
    for j, size in enumerate(across):
      panel = panels[i, j]
      if (weights, size) not in known:
        panel.set_axis_off()
        continue
      lowest[j] = panel
      panel.set_title(f"{weights_words(weights)}, chunks of {size}", fontsize=9)
      for row in rows:
        if (row.weights, row.chunk_size) == (weights, size) and row.products:
          _point(panel, row, top, used)
      panel.set_yscale("log")
      panel.grid(alpha=0.3)
  for panel in lowest.values():
    panel.set_xlabel("products")
    panel.tick_params(labelbottom=True)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
  for panel in panels[:, 0]:
    panel.set_ylabel("mean KL, nats a token")
  if used:
    panels[0, 0].set_ylim(bottom=min(finite, default=FLOOR) / 5, top=2 * top)
    picture.legend(
      used.values(), used.keys(), loc="outside right center", fontsize=8
    )
  return picture


def _point(panel: Any, row: Any, top: float, used: dict[str, Any]) -> None:
  words = row.spec.removeprefix("xla ").split()
  method, form = words[0], words[1]
  colour = COLOURS[form]
  value = _clipped(row.mean_kl)
  if not math.isfinite(value):
    mark = panel.plot(row.products, top, "x", color=colour, markersize=8)
    used.setdefault(f"{form}, overflow", mark[0])
    return
  (mark,) = panel.plot(
    row.products,
    value,
    MARKERS[method],
    color=colour,
    markerfacecolor=colour if len(words) > 2 else "none",
    markersize=7,
  )
  used.setdefault(" ".join(words), mark)


def _clipped(divergence: float) -> float:
  return max(divergence, FLOOR) if math.isfinite(divergence) else math.inf
