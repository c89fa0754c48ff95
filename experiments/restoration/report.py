"""The restoration benchmark's report, from its rows and pictures."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data import degradations
from experiments.data.degradations import CASES, Case
from experiments.harness import record
from experiments.harness.report import Cell, Report
from experiments.harness.samplers import CALIBRATED, PUBLISHED, TUNED
from experiments.restoration import tables
from experiments.restoration.runs import Setup
from experiments.restoration.tables import Rows, Who
from posterior_jax.baselines import TASKS
from posterior_jax.operators import frozen

PICTURES = "pictures"
COLUMNS = [task.replace("_", " ") for task in TASKS]
# Field of a table at one budget, its title, digits after the point.
QUALITIES = (
  ("psnr", "PSNR of one sample [dB]", 2),
  ("psnr_mean", "PSNR of the mean of samples [dB]", 2),
  ("psnr_limit", "PSNR of the mean of ever more samples, estimated [dB]", 2),
  ("certainty", "Spread of samples over what their errors allow", 2),
  ("ssim", "SSIM of one sample", 3),
  ("lpips", "LPIPS of one sample", 3),
  ("lpips_mean", "LPIPS of the mean of samples", 3),
)
# Published PSNR on FFHQ at 256 x 256, noise 0.05: NFC's authors (arXiv
# 2602.00176), and DAPS's (arXiv 2407.01521) as their tables are quoted.
PUBLISHED_PSNR: dict[str, tuple[float | None, ...]] = {
  "NFC, its authors": (31.88, 24.57, None, 29.99, 36.69),
  "DAPS, its authors": (29.07, 24.07, 31.12, 29.19, 29.66),
}
REASONS = (
  "The published figures are for faces under a prior of 94 million parameters "
  "trained on 50,000 faces; ours are for photographs of anything under 5.3 "
  "million parameters and 69 photographs, so a hole of 128 pixels or lost "
  "detail cannot be guessed as well. Motion kernels of the papers are fresh "
  "random draws whose length moves results by several dB; ours are frozen. "
  "The paper gives neither step size nor tau for pixel space: DAPS's stand in. "
  "Its 36.69 dB on motion blur lies 5 dB above every other published number "
  "for that task and near the limit of pure denoising, and is unconfirmed."
)


def picture_name(case: Case, method: str, setting: str, budget: int) -> str:
  """File name, without its ending, of a restored first photograph."""
  return f"{case}, {method} {setting} {budget}"


def write(run: record.Run, setup: Setup, rows: Rows) -> pathlib.Path:
  """Writes `report.html` and returns its path.

  Args:
    run: its folder has the pictures and takes the report.
    setup: photographs and noise.
    rows: of the whole table.
  """
  found = run.environment
  report = Report(
    "Restoration of photographs",
    f"Measured on {', '.join(found['devices'])} with jax "
    f"{found['versions']['jax']}; command: `{found['command']}`. All rows are "
    "in `restoration.jsonl` and `.csv` beside this file.",
  )
  rows = tables.with_derived(tables.latest(rows))
  chosen = tables.methods(rows)
  about = (
    f"{', '.join(setup.names)} at {setup.truth.shape[1]} x "
    f"{setup.truth.shape[2]}, noise {setup.noise_std:g} on pixels in [-1, 1], "
    f"seed {setup.seed}; frozen kernels and masks."
  )
  if chosen:
    _add_methods(report, chosen, about)
    _add_pictures(report, run, setup, chosen)
    _add_papers(report, chosen, about)
  _add_checks(report, rows, about)
  failed = tables.failures(rows)
  if failed:
    report.section("What could not be run")
    for line in failed:
      report.text(line)
  return report.write(run.folder / "report.html")


def _add_methods(report: Report, rows: Rows, about: str) -> None:
  budgets = sorted({who.budget for who in tables.everyone(rows)} - {0})
  report.section("Every method")
  report.text(
    "A posterior sample costs about 3 dB against the posterior mean, so one "
    "sample and the mean of several stand in separate tables, for rivals too. "
    "Settings as published spend what they were published with; tuned ones "
    "the same number of denoiser calls each. Products with the denoiser's "
    "Jacobian, about a call's time each, are counted beside them. What more "
    "samples would bring is estimated from those drawn: the square error of "
    "their mean less the part of it that is chance. The spread of true "
    "posterior samples is 0.71 of one's error; the table gives it over that, "
    "so 1 is right and less is surer than right."
  )
  columns = ["method", "calls", "VJPs", *COLUMNS, "mean"]
  for budget in reversed(budgets):
    _add_budget(report, rows, budget, columns, about)
  if budgets:
    _add_seconds(report, rows, budgets[-1], columns, about)
  report.table(
    "Cost and fit",
    ["method", "calls", "VJPs", "seconds", "residual", "spread"],
    tables.cost(rows),
    measured_on=f"{about} Seconds: all photographs and samples of a case, "
    "compiled, one at a time on the device while others compile.",
    name="cost",
  )
  report.table(
    "Motion blur by kernel, PSNR of one sample [dB]",
    ["method", "calls", *frozen.PATHS],
    tables.by_kernel(rows, tables.everyone(rows), frozen.PATHS),
    measured_on=about,
    name="kernels",
  )


def _add_budget(
  report: Report, rows: Rows, budget: int, columns: list[str], about: str
) -> None:
  """A table for each of QUALITIES."""
  who = tables.at_budget(rows, budget)
  for field, words, digits in QUALITIES:
    lines = tables.quality(rows, field, who, digits)
    if lines:
      report.table(
        f"{words}, {budget} calls",
        columns,
        lines,
        measured_on=f"{about} Samples: {rows[0]['samples']}.",
        name=f"{field}-{budget}",
      )


def _add_seconds(
  report: Report,
  rows: Rows,
  budget: int,
  columns: Sequence[str],
  about: str,
) -> None:
  seconds = tables.mean(rows, "seconds", Who("NFC", TUNED, "", budget))
  if seconds is None:
    return
  for field, words in (
    ("psnr", "PSNR of one sample [dB]"),
    ("psnr_mean", "PSNR of the mean of samples [dB]"),
  ):
    report.table(
      f"{words} within the seconds of NFC's {budget} calls",
      columns,
      tables.quality(rows, field, tables.within(rows, 1.05 * seconds), 2),
      measured_on=f"{about} Of every method the largest run here that takes no "
      f"more than {seconds:.2f} s and a twentieth.",
      name=f"seconds-{field}",
    )


def _add_pictures(
  report: Report, run: record.Run, setup: Setup, rows: Rows
) -> None:
  import matplotlib.pyplot as plt

  folder = run.folder / PICTURES
  shown = _shown(rows)
  cases = [
    case
    for case in CASES
    if any((r["task"], r["kernel"]) == case for r in rows)
  ]
  columns = ["photograph", "measured", *shown]
  figure, axes = plt.subplots(
    len(cases),
    len(columns),
    figsize=(1.75 * len(columns), 1.85 * len(cases)),
    squeeze=False,
    layout="constrained",
  )
  for line, case in zip(axes, cases):
    problem = degradations.measure(
      case, setup.truth[:1], setup.noise_std, setup.seed
    )
    images = [setup.truth[0], degradations.as_image(problem.observation)[0]]
    pixels = [np.clip(np.asarray(x) / 2 + 0.5, 0, 1) for x in images]
    pixels += [
      plt.imread(path) if path.exists() else np.ones((8, 8, 3))
      for path in (folder / f"{case}, {name}.png" for name in shown.values())
    ]
    for axis, image in zip(line, pixels):
      axis.imshow(image)
      axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(str(case), fontsize=8)
  for axis, column in zip(axes[0], columns):
    axis.set_title(column, fontsize=8)
  report.section("Pictures")
  report.figure(
    figure,
    f"{setup.names[0]}, restored. Spread: standard deviation over samples, "
    "white at 0.5.",
    photographic=True,
  )


def _shown(rows: Rows) -> dict[str, str]:
  """Columns of the panel: title to the picture's name after its case."""
  found: dict[str, str] = {}
  for who in tables.everyone(rows):
    name = f"{who.method} {who.setting} {who.budget}"
    pair = (who.method, who.setting)
    if pair == ("NFC", TUNED) or pair == ("DAPS", PUBLISHED):
      found[str(who)] = name
    if pair == ("NFC", CALIBRATED):
      found["a calibrated sample"] = name
      found["mean of samples"] = f"{name}, mean"
      found["spread"] = f"{name}, spread"
  return found


def _add_papers(report: Report, rows: Rows, about: str) -> None:
  report.section("The papers' figures beside ours")
  report.text(REASONS)
  lines: list[list[Any]] = [
    [name, *(Cell(value, 2) for value in values)]
    for name, values in PUBLISHED_PSNR.items()
  ]
  for who in tables.everyone(rows):
    if who.method in ("NFC", "DAPS"):
      values = tables.by_task(rows, "psnr", who)
      lines.append(
        [f"{who}, here, {who.budget or 'its own'} calls"]
        + [Cell(value, 2) for value in values]
      )
  report.table(
    "PSNR of one sample [dB]",
    ["", *COLUMNS],
    lines,
    measured_on="the papers: 100 faces of FFHQ, fresh kernels; here: " + about,
    name="papers",
  )


def _add_checks(report: Report, rows: Rows, about: str) -> None:
  chosen = tables.methods(rows)
  budgets = sorted({who.budget for who in tables.everyone(chosen)} - {0})
  report.section("Checks")
  if budgets:
    _add_standing(report, chosen, budgets, about)
  lines = tables.ablation(rows)
  if lines:
    report.text(
      "The paper's setting with and without its two parts, at the tau that "
      "DAPS publishes and at the measurement's own noise."
    )
    report.table(
      "Ablation, PSNR of one sample [dB]",
      ["variant", *COLUMNS],
      lines,
      measured_on=about,
      name="ablation",
    )
  lines = tables.robustness(rows)
  if lines:
    report.table(
      "Wrong beliefs, PSNR of one sample [dB]",
      ["method", "believes", *COLUMNS],
      lines,
      measured_on=about,
      name="robustness",
    )


def _add_standing(
  report: Report, rows: Rows, budgets: Sequence[int], about: str
) -> None:
  many = budgets[-1]
  about = f"{about} VJPs come on top of calls: the first tables have them."
  for setting, field, words in (
    (TUNED, "psnr", "one sample, NFC tuned"),
    (TUNED, "psnr_mean", "mean of samples, NFC tuned"),
    (CALIBRATED, "psnr_mean", "mean of samples, NFC calibrated"),
  ):
    lines = tables.standing(rows, field, setting, many)
    if lines:
      report.table(
        f"NFC against the best tuned rival at {many} calls: {words}",
        ["task", "NFC", "best rival", "rival", "lead [dB]"],
        lines,
        measured_on=about,
        name=f"standing-{setting}-{field}",
      )
  lead = tables.over_daps(rows, many)
  if lead is not None:
    report.text(
      f"On motion blur, over the three kernels, NFC's lead over DAPS as "
      f"published is {lead:.2f} dB."
    )
  lines = tables.few_steps(rows, budgets[0], many)
  if len(budgets) > 1 and lines:
    report.table(
      f"NFC tuned with {budgets[0]} calls",
      ["task", f"{budgets[0]} calls", f"{many} calls", "loss [dB]"],
      lines,
      measured_on=about,
      name="few-steps",
    )
