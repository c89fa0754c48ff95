"""The restoration benchmark's rows, averaged into tables by pandas."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.harness.subjects.samplers import PUBLISHED, TUNED
from posterior_jax.baselines import TASKS

# Who restored, a line of a table; a budget of 0 is a setting's own.
WHO = ["method", "setting", "variant", "budget"]
Key = tuple[str, str, str, int]
TASK_NAMES = {task: task.replace("_", " ") for task in TASKS}


def latest(rows: pd.DataFrame) -> pd.DataFrame:
  """The last row of every photograph, degradation and program, and two columns.

    certainty: sqrt(2) spread / error of a sample, both root mean squares. The
      truth and a sample of its posterior are two draws, so that 1 is right;
      less is surer than right, 0 knows nothing of its error.
    psnr_limit: PSNR of the mean of ever more samples, from the m at hand: their
      mean's square error less its part by chance, spread^2 / m. Missing where
      that part is all there is.

  Args:
    rows: of any part, in the order they were written.
  """
  keys = ["part", "task", "kernel", "assumed", *WHO, "photograph"]
  found = rows.drop_duplicates(keys, keep="last").reset_index(drop=True)
  # PSNR is on [0, 1], errors are on [-1, 1].
  one, several = (4 * 10 ** (-found[n] / 10) for n in ("psnr", "psnr_mean"))
  left = several - found["spread"] ** 2 / found["samples"]
  found["certainty"] = np.sqrt(2 / one) * found["spread"]
  found["psnr_limit"] = 10 * np.log10(4 / left.where(left > 0))
  return found


def words(who: Key) -> str:
  """A line's name."""
  method, setting, variant, _ = who
  return f"{method} {setting}, {variant}" if variant else f"{method} {setting}"


def mean(rows: pd.DataFrame, field: str, by: list[str]) -> pd.Series:
  """Means of groups, missing where one of a group's rows is."""
  return rows.groupby(by, observed=True)[field].agg(_whole_mean)


def _whole_mean(group: pd.Series) -> float:
  return float(group.mean(skipna=False))


def by_task(
  rows: pd.DataFrame, field: str, by: Sequence[str] = WHO
) -> pd.DataFrame:
  """A field's mean by task, motion blur over its kernels; a line for `by`."""
  found = mean(rows, field, [*by, "task"]).unstack("task")
  return found.reindex(columns=list(TASKS)).rename(columns=TASK_NAMES)


def spent(rows: pd.DataFrame) -> pd.DataFrame:
  """Denoiser calls and VJPs an image, over the tasks that could be run."""
  found = rows.groupby(WHO)[["calls", "products"]].mean().round()
  return found.rename(columns={"products": "VJPs"})


def at_budget(rows: pd.DataFrame, budget: int) -> pd.DataFrame:
  """Published settings at their own budget, the others at the given one."""
  return rows[rows["budget"].isin([0, budget])]


def within(rows: pd.DataFrame, seconds: float) -> pd.DataFrame:
  """Rows of every method and setting's largest budget that takes no longer."""
  taken = mean(rows, "seconds", WHO)
  last = taken[taken <= seconds].groupby(WHO[:2]).tail(1)
  return rows[pd.MultiIndex.from_frame(rows[WHO]).isin(last.index)]


def quality(rows: pd.DataFrame, field: str) -> pd.DataFrame:
  """By method: calls, VJPs, a number a task, and the mean of the tasks."""
  found = by_task(rows, field).dropna(how="all")
  found["mean"] = found.mean(axis=1, skipna=False)
  return named(spent(rows).join(found, how="right"))


def cost(rows: pd.DataFrame) -> pd.DataFrame:
  """By method: calls, VJPs, seconds, residual, spread; of all that ran."""
  done = mean(rows, "calls", WHO).dropna().index
  fields = ("seconds", "residual", "spread")
  found = pd.DataFrame({name: mean(rows, name, WHO) for name in fields})
  return named(spent(rows).join(found).loc[done])


def by_kernel(rows: pd.DataFrame, kernels: Sequence[str]) -> pd.DataFrame:
  """By method: calls and the PSNR of one sample under every blur kernel."""
  found = mean(rows, "psnr", [*WHO, "kernel"]).unstack("kernel")
  found = found.reindex(columns=list(kernels))
  return named(spent(rows)[["calls"]].join(found))


def named(found: pd.DataFrame) -> pd.DataFrame:
  """The lines' names as the first column."""
  found.insert(0, "method", [words(who) for who in found.index])
  return found.reset_index(drop=True)


def standing(
  rows: pd.DataFrame, field: str, setting: str, budget: int
) -> pd.DataFrame:
  """NFC against the best tuned baseline, task by task.

  Args:
    rows: of the methods' part.
    field: "psnr" or "psnr_mean".
    setting: of NFC.
    budget: of both, denoiser calls.

  Returns:
    A line a task that both can do, its lead in dB last.
  """
  found = by_task(rows[rows["budget"] == budget], field, WHO[:2])
  others = found[found.index.get_level_values("setting") == TUNED]
  others = others.drop(index="NFC", errors="ignore").dropna(axis=1, how="all")
  if ("NFC", setting) not in found.index or others.empty:
    return pd.DataFrame()
  own = found[others.columns].T[("NFC", setting)]
  lines = pd.DataFrame(
    {
      "NFC": own,
      "best baseline": others.idxmax().map(" ".join),
      "baseline": others.max(),
      "lead [dB]": own - others.max(),
    }
  )
  return lines.dropna(subset="NFC").rename_axis("task").reset_index()


def over_daps(rows: pd.DataFrame, budget: int) -> float:
  """NFC's lead over DAPS as published on motion blur, dB over all kernels."""
  pair = [("NFC", TUNED, "", budget), ("DAPS", PUBLISHED, "", 0)]
  ours, theirs = by_task(rows, "psnr").reindex(pair)["motion blur"]
  return float(ours - theirs)


def few_steps(rows: pd.DataFrame, few: int, many: int) -> pd.DataFrame:
  """What NFC tuned loses with few calls: task, both PSNR, the loss."""
  found = by_task(rows, "psnr").reindex(
    [("NFC", TUNED, "", budget) for budget in (few, many)]
  )
  lines = found.T.set_axis([f"{few} calls", f"{many} calls"], axis=1).dropna()
  lines["loss [dB]"] = lines.iloc[:, 1] - lines.iloc[:, 0]
  return lines.rename_axis("task").reset_index()


def ablation(rows: pd.DataFrame) -> pd.DataFrame:
  """By variant: PSNR of one sample, task by task."""
  return by_task(rows, "psnr", ["variant"]).reset_index()


def robustness(rows: pd.DataFrame) -> pd.DataFrame:
  """By method and what it assumes: PSNR of one sample, task by task."""
  told = rows["assumed"].replace("", "the truth")
  order = pd.Categorical(told, told.unique())  # as the study has them
  found = by_task(rows.assign(assumed=order), "psnr", [*WHO, "assumed"])
  return named(found.reset_index("assumed"))


def failures(rows: pd.DataFrame) -> list[str]:
  """What could not be run, or diverged, and why."""
  bad = rows[rows["note"] != ""]
  found = bad["task"] + ", " + bad["method"] + " " + bad["setting"]
  return list(dict.fromkeys(found + ": " + bad["note"]))
