"""What stands between the two `equal tuning` comments of the page."""

import json
import pathlib

import pandas as pd

from experiments.equal_tuning import other_prior, tables
from experiments.equal_tuning.page import kernels, prior_section
from experiments.equal_tuning.page.sections import block
from experiments.harness import prior_files

ROOT = pathlib.Path(__file__).resolve().parents[3]
PICTURE = "notebooks/figures/plane.png"
PAGE = ROOT / "docs/benchmarks/tuned_alike.md"
BEGIN = (
  "<!-- equal tuning: written by `python -m experiments.equal_tuning.page` -->"
)
END = "<!-- end of equal tuning -->"


def made(rows: pd.DataFrame, trials: pd.DataFrame) -> str:
  """The page's block; further kernels and priors are of the committed files.

  Args:
    rows: of the pictures, by `tables.read`.
    trials: all points, in their order.
  """
  parts = [block(rows, trials)]
  if tables.KERNELS.exists():
    parts.append(kernels.block(rows, tables.read(tables.KERNELS), trials))
  if other_prior.ROWS.exists():
    second = json.loads(other_prior.ABOUT.read_text())
    large = prior_files.LARGE
    ships = second["prior"] != large or second["sha256"] == prior_files.sha256(
      large
    )
    first = prior_files.about("", prior_files.load(""))._asdict()
    gain = other_prior.GAIN
    parts.append(
      prior_section.block(
        other_prior.with_base(rows),
        tables.read(other_prior.ROWS),
        {each["prior"]: each for each in (first, second | {"ships": ships})},
        pd.read_csv(gain) if gain.exists() else pd.DataFrame(),
      )
    )
  return "\n\n".join(parts)
