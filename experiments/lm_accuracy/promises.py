"""What the study has to show of the inverses, and whether it does."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.data import sequence_tasks
from experiments.harness import record
from experiments.harness.subjects.text_model import AS_TRAINED
from experiments.lm_accuracy import plans

# Largest differences from the exact inverse: in bits per byte of text, and in
# points of accuracy on recall.
MOST_BITS = {
  "ladder bfloat16": 1e-3,
  "ladder int16-dynamic": 1e-3,
  "ladder int8-dynamic": 1e-2,
  "ladder int8-dynamic refine": 2e-3,
}
MOST_POINTS = 0.2
RECALL = ("recall", "needle")


class Promise(NamedTuple):
  """Something that the study has to show."""

  what: str  # in words
  measured: float  # the worst value
  limit: float  # what it must not exceed
  where: str  # of the worst value

  @property
  def kept(self) -> bool:
    """Whether it is kept; what is not finite is not."""
    return self.measured <= self.limit


def of(run: record.Run) -> list[Promise]:
  """Every promise that the run measured, on weights as trained."""
  rows, planned, errors = map(run.frame, ("predictions", "plans", "errors"))
  rows = rows[rows["weights"] == AS_TRAINED]
  text = rows[~rows["kind"].isin(list(sequence_tasks.TASKS))]
  recall = rows[rows["kind"].isin(RECALL)]
  points = dict.fromkeys(MOST_BITS, MOST_POINTS)
  found = [
    _worst(own, field, limit, f"{spec}: {words}")
    for part, field, limits, words in (
      (text, "more_bits", MOST_BITS, "bits per byte, any text"),
      (recall, "more_accuracy", points, "points of recall"),
    )
    for spec, limit in limits.items()
    if len(own := part[part["spec"] == spec])
  ]
  worst = plans.worst_share(planned)
  beyond = errors["violations"][errors["format"] != "float64"].sum()
  return [
    *found,
    Promise(
      "plan: row sum over its tolerance", worst, 1.0, f"{len(planned)} plans"
    ),
    Promise("entries beyond their certificate", beyond, 0, "all cases"),
  ]


def _worst(rows: pd.DataFrame, field: str, limit: float, what: str) -> Promise:
  sizes = rows[field].abs().fillna(np.inf)
  worst = rows.loc[sizes.idxmax()]
  where = f"C = {worst['chunk_size']}, {worst['kind']}"
  return Promise(what, float(sizes.max()), limit, where)
