"""Figures of arXiv 2606.06034 that the study of accuracy stands beside.

Its text was not open to us: these are its tables as public summaries of it
report them. A cell that no summary shows is absent.
"""

from typing import NamedTuple

SOURCE = "arXiv 2606.06034 as public summaries report it"

# Table 4: signal-to-noise ratio in dB, mean and worst, of inverses of 100
# samples of WikiText-2 with 4K tokens, by our names of method and format.
RATIOS = {
  ("full series", "float64"): (178.42, 96.46),
  ("full series", "float16"): (79.53, -17.94),
  ("truncated", "float16"): (42.13, -51.11),
  ("+ residual", "float16"): (80.35, -4.24),
  ("+ mask", "float16"): (86.91, 47.98),
}

# Table 5: perplexity on WikiText-2 by order N and terms S; NaN as published.
GRID = {
  (3, 1): float("nan"),
  (4, 1): float("nan"),
  (5, 1): float("nan"),
  (6, 1): 469727.0,
  (3, 4): float("nan"),
  (4, 4): 169.30,
  (5, 4): 61.31,
  (6, 4): 144.95,
  (3, 8): 8.98,
  (4, 8): 9.54,
  (5, 8): 66.03,
  (6, 8): 117.79,
}


class Perplexity(NamedTuple):
  """A perplexity on WikiText-2 with the exact inverse and with the paper's."""

  table: str  # of the paper
  model: str  # of the Qwen3.5 family, or its chunk size
  weights: str  # of the model
  inverse: str  # its arithmetic
  # with forward substitution; None where no summary shows it
  exact: float | None
  paper: float  # with the paper's inverse


PERPLEXITIES = (
  Perplexity("2", "0.8B", "floating point", "FP16", 15.74, 15.74),
  Perplexity("3", "0.8B", "W4A16", "INT16", 17.54, 17.55),
  Perplexity("3", "4B", "W4A16", "INT16", 9.66, 9.67),
  Perplexity("7", "C = 128", "W4A16", "INT16", None, 9.71),
  Perplexity("7", "C = 128", "W4A16", "INT8", None, 9.71),
)


def ratio(method: str, form: str) -> tuple[float, float] | None:
  """Mean and worst ratio of a method as `errors.methods` names it."""
  return RATIOS.get((method.split(",")[0], form))
