"""Figures of arXiv 2606.06034 that we stand beside, read from `paper.toml`."""

import pathlib
import tomllib

SOURCE = "arXiv 2606.06034 as public summaries report it"
_TABLES = tomllib.loads(
  pathlib.Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
# Mean and worst signal-to-noise ratio in dB by our names of method and format.
RATIOS = {
  (method, form): (mean, worst)
  for method, forms in _TABLES["ratios"].items()
  for form, (mean, worst) in forms.items()
}
# Perplexity by order N and terms S.
GRID = {
  (order, int(terms)): value
  for terms, values in _TABLES["grid"].items()
  for order, value in enumerate(values, 3)
}
# Table, model, weights, inverse, exact perplexity (or NaN), the paper's.
PERPLEXITIES = _TABLES["perplexities"]["rows"]


def ratio(method: str, form: str) -> tuple[float, float] | None:
  """Mean and worst ratio of a method as `errors.methods` names it."""
  return RATIOS.get((method.split(",")[0], form))
