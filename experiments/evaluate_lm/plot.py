"""What a chunk inverse costs and what it does: a value against its products."""

from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.subjects import text_model
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.spec_names import format_name, without_format

FLOOR = 1e-9  # nats; below it float32 logits cannot tell
CAPTION = (
  "Mean KL from the exact float32 inverse, in nats per token, against the "
  "C x C products of the inverse. Colours are operand formats, shapes are "
  "methods; filled shapes are refined. A cross at the top edge overflowed; a "
  "divergence below 1e-9, where float32 logits cannot tell, is drawn at 1e-9."
)
MARKERS = "osD^vPX*"


def divergences(cases: pd.DataFrame) -> Any:
  """Mean KL of cases by weights (down) and chunk size (across).

  Those without products are left out.
  """
  cases = cases[cases.products > 0]
  specs = cases.spec.str.removeprefix("xla ").map(InverseSpec.parse)
  return by_products(
    pd.DataFrame(
      {
        "down": cases.weights.map(text_model.weights_words),
        "across": cases.chunk_size.map("chunks of {}".format),
        "products": cases.products,
        "value": cases.mean_kl.clip(lower=FLOOR),
        "method": [without_format(s).removesuffix(" refine") for s in specs],
        "format": specs.map(format_name),
        "filled": [s.refine > 0 for s in specs],
      }
    ),
    "mean KL, nats per token",
    log=True,
  )


def by_products(points: pd.DataFrame, label: str, *, log: bool) -> Any:
  """Values over products, colours by format and shapes by method.

  Points have down and across (the panel, in words), products, value, method,
  format and filled. A value that is not finite is a cross at the top where
  values are logarithmic, and left out otherwise.
  """
  from matplotlib.figure import Figure

  if points.empty:
    picture = Figure(figsize=(4, 1))
    picture.text(0.1, 0.5, "nothing but the solve was measured")
    return picture
  down, across = points.down.unique(), points.across.unique()
  formats = {name: f"C{i}" for i, name in enumerate(points.format.unique())}
  shapes = dict(zip(points.method.unique(), MARKERS))
  picture = Figure(
    figsize=(2.4 + 3.4 * len(across), 0.8 + 2.9 * len(down)),
    layout="constrained",
  )
  panels = picture.subplots(
    len(down), len(across), sharex=True, sharey=True, squeeze=False
  )
  finite = points.value[np.isfinite(points.value)]
  top = 10 * finite.max() if log and len(finite) else None
  panel: Any
  for (i, j), panel in np.ndenumerate(panels):
    own = points[(points.down == down[i]) & (points.across == across[j])]
    for point in own.itertuples():
      _draw(panel, point, formats[point.format], shapes[point.method], top)
    panel.set_title(", ".join(filter(None, (down[i], across[j]))), fontsize=9)
    panel.grid(alpha=0.3)
  if top is not None:
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylim(finite.min() / 5, 2 * top)
  products = sorted(points.products.unique())
  panels[0, 0].set_xscale("log")
  panels[0, 0].set_xticks(products, products)
  panels[0, 0].set_xticks([], minor=True)
  for column in panels.T:
    used = [panel for panel in column if panel.has_data()]
    used[-1].set_xlabel("products")
    used[-1].tick_params(labelbottom=True)
    for panel in set(column) - set(used):  # not every case is measured
      panel.set_visible(False)
  for panel in panels[:, 0]:
    panel.set_ylabel(label)
  picture.legend(
    handles=_legend(formats, shapes), loc="outside right center", fontsize=8
  )
  return picture


def _draw(
  panel: Any, point: Any, colour: str, shape: str, top: float | None
) -> None:
  if not np.isfinite(point.value):
    if top is not None:
      panel.plot(point.products, top, "x", color=colour, markersize=8)
    return
  face = colour if point.filled else "none"
  panel.plot(
    point.products,
    point.value,
    shape,
    color=colour,
    markerfacecolor=face,
    markersize=7,
  )


def _legend(formats: dict[str, str], shapes: dict[str, str]) -> list[Any]:
  from matplotlib.lines import Line2D

  plain: Any = {"linestyle": "", "markerfacecolor": "none", "color": "black"}
  return [
    *(Line2D([], [], color=c, lw=3, label=name) for name, c in formats.items()),
    *(Line2D([], [], marker=m, label=n, **plain) for n, m in shapes.items()),
  ]
