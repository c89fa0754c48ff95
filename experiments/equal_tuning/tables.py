"""Tables of equal tuning, from the rows of a run or from those committed.

`rows.csv` has what every winner restored, a row for each picture; `trials.csv`
every point that was tried and its mean scores on the pictures that are tuned
on.
"""

import pathlib
import shlex
from typing import Any

import pandas as pd

from experiments.harness import paired

# Of a run: its tables of pictures, of points, of cells without a program, and
# of the prior.
TABLE, TRIED, FAILED, PRIOR = "equal", "trials", "failed", "prior"
ROWS = pathlib.Path(__file__).with_name("rows.csv")
TRIALS = pathlib.Path(__file__).with_name("trials.csv")
# Of kernels of motion blur that `rows.csv` has none of.
KERNELS = pathlib.Path(__file__).with_name("kernel_rows.csv")
SEARCH = ["method", "evaluations", "task"]  # columns that name one
OWN = "NFC"  # how the names of its settings begin
# By what is tuned for: its column, digits, and whether high is good.
SCORES = {"PSNR": ("psnr", 2, True), "LPIPS": ("lpips", 3, False)}
NAMES = {
  "motion_blur short": "motion, short",
  "motion_blur medium": "motion, medium",
  "motion_blur long": "motion, long",
  "super_resolution": "super-resolution x4",
  "gaussian_blur": "Gaussian blur",
  "random_inpainting": "random 70 %",
  "box_inpainting": "box",
}
_LISTS = ("picture", "psnr", "lpips")
_TRIED = ("point", "psnr", "lpips")
AHEAD, LEVEL, BEHIND = "ahead", "level", "behind"


def read(path: pathlib.Path = ROWS) -> pd.DataFrame:
  """The committed rows, one for each picture again.

  In the file the pictures of a run share a line, their numbers one after the
  other.
  """
  text = {"point": str, **dict.fromkeys(_LISTS, str)}
  found = pd.read_csv(path, dtype=text, keep_default_na=False)
  for name in _LISTS:
    found[name] = found[name].map(shlex.split)
  found = found.explode(list(_LISTS), ignore_index=True)
  return named(found.astype({"psnr": float, "lpips": float}))


def packed(rows: pd.DataFrame) -> pd.DataFrame:
  """What `read` reads: a line for each run, in the order of the rows."""
  about = [name for name in rows if name not in (*_LISTS, "operator")]
  shown = rows.assign(
    psnr=rows["psnr"].map("{:.3f}".format),
    lpips=rows["lpips"].map("{:.4f}".format),
    seconds=rows["seconds"].map("{:.3g}".format),
  )
  # Names of pictures may have spaces.
  lists = dict.fromkeys(_LISTS, shlex.join)
  return shown.groupby(about, sort=False, as_index=False).agg(lists)


def read_trials(path: pathlib.Path = TRIALS) -> pd.DataFrame:
  """The committed points, one for each row again.

  In the file the points of a search share a line, their numbers one after the
  other.
  """
  found = pd.read_csv(path, dtype=str, keep_default_na=False)
  for name in _TRIED:
    found[name] = found[name].map(str.split)
  found = found.explode([*_TRIED], ignore_index=True)
  found["point"] = [
    ", ".join(map("=".join, zip(names.split(), numbers.split("/"))))
    for names, numbers in zip(found.pop("knobs"), found["point"])
  ]
  return found.astype({"evaluations": int, "psnr": float, "lpips": float})


def packed_trials(trials: pd.DataFrame) -> pd.DataFrame:
  """What `read_trials` reads: a line for each search, its points in order."""
  knobs = trials["point"].str.findall(r"(\w+)=")
  numbers = trials["point"].str.findall(r"=([^,]+)")
  shown = trials[SEARCH].assign(
    knobs=knobs.map(" ".join),
    point=numbers.map("/".join),
    psnr=trials["psnr"].map("{:.4f}".format),
    lpips=trials["lpips"].map("{:.4f}".format),
  )
  by = shown.groupby([*SEARCH, "knobs"], sort=False, as_index=False)
  return by.agg(dict.fromkeys(_TRIED, " ".join))


def named(rows: pd.DataFrame) -> pd.DataFrame:
  """Rows with the operator's name in a column of its own."""
  kernels = rows["kernel"].fillna("")
  joined = (rows["task"] + " " + kernels).str.strip()
  # Other kernels of motion blur have no column of their own.
  return rows.assign(operator=joined.map(NAMES).fillna("motion, " + kernels))


def chosen(
  rows: pd.DataFrame, criterion: str, evaluations: int, *, mean: bool = False
) -> pd.DataFrame:
  """One budget's rows by what was tuned for: one sample, or means of chains."""
  several = (rows["chains"] > 1) == mean
  return rows[
    several
    & (rows["tuned for"] == criterion)
    & (rows["evaluations"] == evaluations)
  ]


def scores(rows: pd.DataFrame, criterion: str) -> pd.DataFrame:
  """(operator, picture) x method, without operators that a method lacks."""
  column = SCORES[criterion][0]
  return rows.pivot_table(column, ["operator", "picture"], "method", sort=False)


def quality(rows: pd.DataFrame, criterion: str) -> pd.DataFrame:
  """By method: mean score for every operator, share of wins, median rank.

  Wins and ranks are over all pictures and operators, among the methods that
  have all of those.
  """
  column, _, high = SCORES[criterion]
  # Of what diverged there is no mean.
  wide = rows.groupby(["method", "operator"])[column].agg(mean).unstack()
  order = [name for name in NAMES.values() if name in wide]
  wide = wide[[*order, *wide.columns.difference(order, sort=False)]]
  wide = wide.rename_axis(columns=None)
  whole = scores(rows, criterion).dropna(axis=1)
  wide["wins"] = 100 * paired.wins(whole, high_is_good=high)
  wide["median rank"] = paired.median_ranks(whole, high_is_good=high)
  return wide.sort_values("median rank")


def comparable(rows: pd.DataFrame) -> set[str]:
  """Operators that at most one method of the rows other than NFC's lacks.

  A method that has no rows at all, as of a budget that was cut short, is not
  counted.
  """
  others = rows[~rows["method"].str.startswith(OWN)]
  count = others.groupby("operator")["method"].nunique()
  return set(count.index[count + 1 >= count.max()])


def standing(
  rows: pd.DataFrame, criterion: str, among: set[str] | None = None
) -> pd.DataFrame:
  """The best setting of NFC against the best other method, by operator.

  Args:
    rows: by `chosen`.
    criterion: of SCORES, what they were tuned for.
    among: operators; None for those that are `comparable`: of the others nobody
      knows who would be the best there.

  Returns:
    By operator both names and means, the mean lead (positive where NFC is
    better) with its 95 % interval over pictures, whether that lies above zero
    (ahead), below (behind) or about it (level), and how likely a lead as far
    from zero is by chance (`paired.chance`). Empty where NFC or all
    others were not run.
  """
  operators = comparable(rows) if among is None else among
  found = [
    {"operator": operator} | pair
    for operator, own in rows.groupby("operator", sort=False)
    if operator in operators and (pair := _pair(own, criterion))
  ]
  if not found:
    return pd.DataFrame()
  table = pd.DataFrame(found).set_index("operator")
  order = [name for name in NAMES.values() if name in table.index]
  return table.loc[[*order, *table.index.difference(order, sort=False)]]


def _pair(rows: pd.DataFrame, criterion: str) -> dict[str, Any]:
  """One operator's row of `standing`; empty where NFC or others are missing."""
  column, _, high = SCORES[criterion]
  wide = rows.pivot_table(column, "picture", "method").dropna(axis=1)
  means = wide.mean() if high else -wide.mean()
  ours = [name for name in wide if name.startswith(OWN)]
  theirs = [name for name in wide if not name.startswith(OWN)]
  if not ours or not theirs:
    return {}
  best, other = means[ours].idxmax(), means[theirs].idxmax()
  lead = (wide[best] - wide[other]).to_numpy() * (1 if high else -1)
  value, low, high_end = paired.interval(lead)
  return {
    "best of NFC": best,
    "its mean": wide[best].mean(),
    "best other": other,
    "other mean": wide[other].mean(),
    "lead": value,
    "from": low,
    "to": high_end,
    "NFC is": _verdict(low, high_end),
    "chance": paired.chance(lead),
  }


def mean(values: pd.Series) -> float:
  """Of all, so that a run that diverged has none."""
  return values.mean(skipna=False)


def _verdict(low: float, high: float) -> str:
  if low > 0:
    return AHEAD
  return BEHIND if high < 0 else LEVEL


def plane(rows: pd.DataFrame, criterion: str) -> pd.DataFrame:
  """By method and evaluations: PSNR and LPIPS over all operators.

  Methods without a form for one of the operators are left out.
  """
  single = rows[(rows["chains"] == 1) & (rows["tuned for"] == criterion)]
  by = ["method", "evaluations"]
  count = single.groupby(by)["operator"].nunique()
  means = single.groupby([*by, "operator"])[["psnr", "lpips"]].agg(mean)
  found = means.groupby(by).agg(mean)[count == count.max()]
  return found.dropna()


def trial_counts(trials: pd.DataFrame) -> pd.DataFrame:
  """How many points were tried, by method, evaluations and task."""
  found = trials.groupby(SEARCH, sort=False).size()
  return found.unstack("task").reset_index()


def distinct(trials: pd.DataFrame) -> pd.DataFrame:
  """How many points were tried and how many results differ, by search.

  Points of one result have the same PSNR and LPIPS on the pictures that are
  tuned on, as rounded in the file; all that were refused or diverged are one.

  Returns:
    Columns points and results, by method, evaluations and task.
  """
  results = trials["psnr"].astype(str) + " " + trials["lpips"].astype(str)
  by = trials.assign(result=results).groupby(SEARCH)
  return pd.DataFrame({"points": by.size(), "results": by["result"].nunique()})


def interior(rows: pd.DataFrame) -> pd.DataFrame:
  """Winners and how many of them lie inside, by evaluations."""
  single = rows[rows["chains"] == 1]
  about = [*SEARCH, "tuned for"]
  own = single.drop_duplicates(about).groupby("evaluations")["interior"]
  return pd.DataFrame({"inside": own.sum().astype(int), "winners": own.size()})


def on_edges(rows: pd.DataFrame) -> pd.DataFrame:
  """Winners with an open side: method, evaluations, task, tuned for, point."""
  about = [*SEARCH, "tuned for", "point"]
  edge = rows[(rows["chains"] == 1) & ~rows["interior"].astype(bool)]
  return edge[about].drop_duplicates().reset_index(drop=True)
