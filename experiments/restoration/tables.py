"""The restoration benchmark's rows, averaged into tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.report import Cell
from experiments.harness.samplers import CALIBRATED, PUBLISHED, TUNED
from experiments.restoration.rows import ABLATION, METHODS, ROBUSTNESS
from posterior_jax.baselines import TASKS

Rows = Sequence[Mapping[str, Any]]


class Who(NamedTuple):
  """Who restored: a line of a table.

  Attributes:
    method: a key of `samplers.METHODS`.
    setting: of the method.
    variant: changes of the setting.
    budget: denoiser calls asked for; 0: as the setting does.
  """

  method: str
  setting: str
  variant: str
  budget: int

  def __str__(self) -> str:
    words = f"{self.method} {self.setting}"
    return f"{words}, {self.variant}" if self.variant else words


OURS = (TUNED, CALIBRATED)


def latest(rows: Rows) -> list[Mapping[str, Any]]:
  """The last row of every photograph, case and program."""
  keys = ("part", "task", "kernel", "assumed", *Who._fields, "photograph")
  return list({tuple(row[k] for k in keys): row for row in rows}.values())


def with_derived(rows: Rows) -> list[dict[str, Any]]:
  """Rows with what follows from their numbers, None without several samples.

    certainty: sqrt(2) spread / error of a sample, both root mean squares. The
      truth and a sample of its posterior are two draws, so that 1 is right;
      less is surer than right, 0 knows nothing of its error.
    psnr_limit: PSNR of the mean of ever more samples, from the m at hand: their
      mean's square error less its part by chance, spread^2 / m. None where that
      part is all there is.

  Args:
    rows: of any part.
  """
  return [dict(row) | _derived(row) for row in rows]


def _derived(row: Mapping[str, Any]) -> dict[str, float | None]:
  if row["spread"] is None or row["psnr_mean"] is None:
    return {"certainty": None, "psnr_limit": None}
  spread, count = float(row["spread"]), int(row["samples"])
  one, several = (
    4 * 10 ** (-float(row[name]) / 10) for name in ("psnr", "psnr_mean")
  )
  left = several - spread**2 / count
  return {
    "certainty": float(np.sqrt(2 / one) * spread),
    "psnr_limit": float(10 * np.log10(4 / left)) if left > 0 else None,
  }


def part(rows: Rows, name: str, assumed: str = "") -> Rows:
  """Rows of one part of the study, under one belief."""
  return [r for r in rows if (r["part"], r["assumed"]) == (name, assumed)]


def everyone(rows: Rows) -> list[Who]:
  """Who restored, in the order of the rows' methods."""
  found = (Who(*(row[field] for field in Who._fields)) for row in rows)
  return sorted(dict.fromkeys(found))


def mean(rows: Rows, field: str, who: Who, **chosen: str) -> float | None:
  """A field's mean over photographs and cases, None where one is missing.

  Args:
    rows: of one part and belief.
    field: a number of `Row`.
    who: whose.
    **chosen: what other fields must be, as task="motion_blur".
  """
  wanted = who._asdict() | chosen
  values = [
    row[field]
    for row in rows
    if all(row[name] == value for name, value in wanted.items())
  ]
  if not values or any(value is None for value in values):
    return None
  return float(np.mean([float(value) for value in values]))


def by_task(rows: Rows, field: str, who: Who) -> list[float | None]:
  """A field's mean for each of TASKS, motion blur over its kernels."""
  return [mean(rows, field, who, task=task) for task in TASKS]


def at_budget(rows: Rows, budget: int) -> list[Who]:
  """Published settings at their own budget, the others at the given one."""
  return [who for who in everyone(rows) if who.budget in (0, budget)]


def within(rows: Rows, seconds: float) -> list[Who]:
  """Of every method and setting the largest budget that takes no longer."""
  best: dict[tuple[str, str], Who] = {}
  for who in everyone(rows):
    taken = mean(rows, "seconds", who)
    if taken is not None and taken <= seconds:
      best[who[:2]] = who  # sorted by budget
  return list(best.values())


def quality(
  rows: Rows, field: str, who: Iterable[Who], digits: int
) -> list[list[Any]]:
  """Lines of a table: who, calls, products, a number a task, their mean."""
  lines = []
  for each in who:
    values = by_task(rows, field, each)
    known = [v for v in values if v is not None]
    if not known:
      continue
    whole = float(np.mean(known)) if len(known) == len(values) else None
    lines.append(
      [
        str(each),
        *(_spent(rows, f, each) for f in ("calls", "products")),
        *(Cell(value, digits) for value in (*values, whole)),
      ]
    )
  return lines


def cost(rows: Rows) -> list[list[Any]]:
  """Lines of a table: who, calls, products, seconds, residual, spread."""
  return [
    [
      str(who),
      *(_spent(rows, f, who) for f in ("calls", "products")),
      Cell(mean(rows, "seconds", who), 2),
      Cell(mean(rows, "residual", who), 2),
      Cell(mean(rows, "spread", who), 3),
    ]
    for who in everyone(rows)
    if mean(rows, "calls", who) is not None
  ]


def by_kernel(rows: Rows, who: Iterable[Who], kernels: Sequence[str]) -> list:
  """Lines of a table: who, calls, one-sample PSNR of every kernel."""
  return [
    [
      str(each),
      _spent(rows, "calls", each),
      *(Cell(mean(rows, "psnr", each, kernel=k), 2) for k in kernels),
    ]
    for each in who
  ]


def failures(rows: Rows) -> list[str]:
  """What could not be run, and why."""
  return list(
    dict.fromkeys(
      f"{row['task']}, {row['method']} {row['setting']}: {row['note']}"
      for row in rows
      if row["note"]
    )
  )


def standing(rows: Rows, field: str, setting: str, budget: int) -> list[list]:
  """NFC against the best tuned rival: task, NFC, rival, its number, gap.

  Args:
    rows: of the methods' part.
    field: "psnr" or "psnr_mean".
    setting: of NFC.
    budget: of both.
  """
  ours = Who("NFC", setting, "", budget)
  rivals = [
    who
    for who in everyone(rows)
    if who.method != "NFC" and (who.setting, who.budget) == (TUNED, budget)
  ]
  lines = []
  for task in TASKS:
    own = mean(rows, field, ours, task=task)
    found = {who: mean(rows, field, who, task=task) for who in rivals}
    known = {who: value for who, value in found.items() if value is not None}
    if own is None or not known:
      continue
    best = max(known, key=lambda who: known[who])
    gap = own - known[best]
    lines.append(
      [
        task.replace("_", " "),
        Cell(own, 2),
        str(best),
        Cell(known[best], 2),
        Cell(gap, 2, bad=gap < -0.1),
      ]
    )
  return lines


def over_daps(rows: Rows, budget: int) -> float | None:
  """NFC's lead over DAPS as published on motion blur, dB over all kernels."""
  pair = Who("NFC", TUNED, "", budget), Who("DAPS", PUBLISHED, "", 0)
  ours, theirs = (mean(rows, "psnr", who, task="motion_blur") for who in pair)
  return None if ours is None or theirs is None else ours - theirs


def few_steps(rows: Rows, few: int, many: int) -> list[list[Any]]:
  """What NFC loses with few calls: task, both PSNR, the loss."""
  lines = []
  for task in TASKS:
    pair = [
      mean(rows, "psnr", Who("NFC", TUNED, "", budget), task=task)
      for budget in (few, many)
    ]
    if None not in pair:
      loss = float(pair[1]) - float(pair[0])  # type: ignore[arg-type]
      lines.append(
        [
          task.replace("_", " "),
          *(Cell(value, 2) for value in pair),
          Cell(loss, 2, bad=loss > 0.5),
        ]
      )
  return lines


def ablation(rows: Rows) -> list[list[Any]]:
  """Lines of a table: variant, one-sample PSNR of every task."""
  rows = part(rows, ABLATION)
  return [
    [who.variant, *(Cell(value, 2) for value in by_task(rows, "psnr", who))]
    for who in everyone(rows)
  ]


def robustness(rows: Rows) -> list[list[Any]]:
  """Lines of a table: who, belief, one-sample PSNR of every task."""
  chosen = [row for row in rows if row["part"] == ROBUSTNESS]
  beliefs = dict.fromkeys(row["assumed"] for row in chosen)
  return [
    [
      str(who),
      belief or "the truth",
      *(
        Cell(value, 2)
        for value in by_task(part(rows, ROBUSTNESS, belief), "psnr", who)
      ),
    ]
    for who in everyone(chosen)
    for belief in beliefs
  ]


def methods(rows: Rows) -> Rows:
  """Rows of the methods' part."""
  return part(rows, METHODS)


def _spent(rows: Rows, field: str, who: Who) -> Cell:
  """A count of calls, over the cases that could be run."""
  ran = [row for row in rows if row["calls"] is not None]
  value = mean(ran, field, who)
  return Cell(None if value is None else round(value))
