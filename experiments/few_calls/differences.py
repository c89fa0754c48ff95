"""How far one method is ahead of every other, paired by picture."""

import pandas as pd

from experiments.few_calls.methods import FAST
from experiments.harness import paired


def differences(rows: pd.DataFrame, method: str = FAST) -> pd.DataFrame:
  """fast() less every baseline, paired by picture: mean and 95 % interval.

  Args:
    rows: of the table.
    method: in the place of fast().

  Returns:
    By task, calls and baseline: its PSNR, that of fast(), the mean difference,
    half the width of its interval, the number of pictures, and the ends of the
    interval by 100,000 resamples of the pictures.
  """
  case = ["task", "calls"]
  wide = rows.pivot_table("psnr", [*case, "picture"], "method", sort=False)
  found = []
  for about, own in wide.groupby(case, sort=False):
    for baseline in own.columns.drop(method):
      gap = (own[method] - own[baseline]).dropna()
      if not len(gap):
        continue
      mean, low, high = paired.interval(gap.to_numpy())
      found.append(
        {
          **dict(zip(case, about)),
          "baseline": baseline,
          "its PSNR": own[baseline].mean(),
          "fast()": own[method].mean(),
          "difference": mean,
          "half of 95 %": (high - low) / 2,
          "pictures": len(gap),
          "from": low,
          "to": high,
        }
      )
  return pd.DataFrame(found).set_index([*case, "baseline"])
