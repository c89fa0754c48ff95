"""The restoration benchmark's report, from its rows and pictures."""

from typing import Any

import numpy as np
import pandas as pd

from experiments.data import degradations, photographs
from experiments.data.degradations import FROZEN, Degradation
from experiments.harness import record
from experiments.harness.reporting.pictures import panel
from experiments.harness.reporting.report import Report
from experiments.harness.subjects.samplers import CALIBRATED, PUBLISHED, TUNED
from experiments.restoration import tables
from experiments.restoration.runs import ABLATION, METHODS, ROBUSTNESS
from experiments.restoration.setup import Setup
from posterior_jax.operators import frozen

PICTURES = "pictures"
BLANK = np.ones((8, 8, 1))
ONE = "PSNR of one sample [dB]"
MEAN = "PSNR of the mean of samples [dB]"
# Field of a table at one budget: its title, digits after the point.
QUALITIES = {
  "psnr": (ONE, 2),
  "psnr_mean": (MEAN, 2),
  "psnr_limit": ("PSNR of the mean of ever more samples, estimated [dB]", 2),
  "certainty": ("Spread of samples over what their errors allow", 2),
  "ssim": ("SSIM of one sample", 3),
  "flip": ("FLIP of one sample", 3),
  "lpips": ("LPIPS of one sample", 3),
  "flip_mean": ("FLIP of the mean of samples", 3),
  "lpips_mean": ("LPIPS of the mean of samples", 3),
}
# Published PSNR on FFHQ at 256 x 256, noise 0.05: NFC's authors (arXiv
# 2602.00176), and DAPS's (arXiv 2407.01521) as their tables are quoted.
PUBLISHED_PSNR = {
  "NFC, its authors": (31.88, 24.57, None, 29.99, 36.69),
  "DAPS, its authors": (29.07, 24.07, 31.12, 29.19, 29.66),
}
METHODS_TEXT = (
  "A posterior sample costs about 3 dB against the posterior mean, so one "
  "sample and the mean of several stand in separate tables, for baselines too. "
  "Settings as published spend what they were published with; tuned ones "
  "the same number of denoiser calls each. Products with the denoiser's "
  "Jacobian, about a call's time each, are counted beside them. What more "
  "samples would bring is estimated from those drawn: the square error of "
  "their mean less the part of it that is chance. The spread of true "
  "posterior samples is 0.71 of one's error; the table gives it over that, "
  "so 1 is right and less is surer than right."
)
PAPERS_TEXT = (
  "The published figures are for faces under a prior of 94 million parameters "
  "trained on 50,000 faces; ours are for photographs of anything, and the "
  "prior that is taken where none is named has 5.3 million parameters and 69 "
  "photographs, so a hole of 128 pixels or lost detail cannot be guessed as "
  "well. Motion kernels of the papers are fresh "
  "random draws whose length moves results by several dB; ours are frozen. "
  "The paper gives neither step size nor tau for pixel space: DAPS's stand in. "
  "Its 36.69 dB on motion blur lies 5 dB above every other published number "
  "for that task and near the limit of pure denoising, and is unconfirmed."
)


def picture_name(
  degradation: Degradation, method: str, setting: str, budget: int
) -> str:
  """File name, without its ending, of a restored first photograph."""
  return f"{degradation}, {method} {setting} {budget}"


def behind(lead: float) -> bool:
  """Whether NFC's lead in dB is a failure: by more than a tenth."""
  return lead < -0.1


def write(run: record.Run, setup: Setup, rows: pd.DataFrame) -> None:
  """Writes `report.html`, prints its path.

  Args:
    run: its folder has the pictures and takes the report.
    setup: photographs and noise.
    rows: of the whole table.
  """
  report = Report("Restoration of photographs", run.origin())
  rows = tables.latest(rows)
  about = (
    f"{', '.join(setup.names)} at {setup.truth.shape[1]} x "
    f"{setup.truth.shape[2]}, noise {setup.noise_std:g} on pixels in [-1, 1], "
    f"seed {setup.seed}; frozen kernels and masks."
  )
  chosen = rows[(rows["part"] == METHODS) & (rows["assumed"] == "")]
  budgets = sorted(set(chosen["budget"]) - {0})
  if len(chosen):
    _add_methods(report, chosen, budgets, about)
    _add_pictures(report, run, setup, chosen)
    _add_papers(report, chosen, about)
  report.section("Checks")
  if budgets:
    _add_standing(report, chosen, budgets, about)
  _add_parts(report, rows, about)
  failed = tables.failures(rows)
  if failed:
    report.section("What could not be run")
    for line in failed:
      report.text(line)
  report.leave(run.folder)


def _add(
  report: Report,
  caption: str,
  table: pd.DataFrame,
  about: str,
  name: str,
  digits: int = 2,
  **shown: Any,
) -> None:
  """A table whose counts are whole and whose numbers have so many digits."""
  if len(table):
    places = dict.fromkeys(table.columns, digits)
    places |= {"calls": 0, "VJPs": 0, "spread": 3}
    report.table(
      caption, table, digits=places, measured_on=about, name=name, **shown
    )


def _add_methods(
  report: Report, rows: pd.DataFrame, budgets: list[int], about: str
) -> None:
  report.section("Every method")
  report.text(METHODS_TEXT)
  count = f"{about} Samples: {rows['samples'].iloc[0]}."
  for budget in reversed(budgets):
    chosen = tables.at_budget(rows, budget)
    for field, (words, digits) in QUALITIES.items():
      table = tables.quality(chosen, field)
      caption = f"{words}, {budget} calls"
      _add(report, caption, table, count, f"{field}-{budget}", digits)
  nfc = (rows["method"] == "NFC") & (rows["setting"] == TUNED)
  nfc &= rows["budget"] == max(budgets, default=0)
  seconds = rows[nfc]["seconds"].mean(skipna=False)
  for field, words in (("psnr", ONE), ("psnr_mean", MEAN)):
    _add(
      report,
      f"{words} within the seconds of NFC's {max(budgets, default=0)} calls",
      tables.quality(tables.within(rows, 1.05 * seconds), field),
      f"{about} Of every method the largest run here that takes no more than "
      f"{seconds:.2f} s and a twentieth.",
      f"seconds-{field}",
    )
  _add(
    report,
    "Cost and fit",
    tables.cost(rows),
    f"{about} Seconds: all photographs and samples of a case, compiled, one at "
    "a time on the device while others compile.",
    "cost",
  )
  words = f"Motion blur by kernel, {ONE}"
  _add(report, words, tables.by_kernel(rows, frozen.PATHS), about, "kernels")


def _add_pictures(
  report: Report, run: record.Run, setup: Setup, rows: pd.DataFrame
) -> None:
  shown = _shown(rows)
  lines = {}
  there = set(zip(rows["task"], rows["kernel"]))
  for degradation in filter(there.__contains__, FROZEN):
    problem = degradations.measure(
      degradation, setup.truth[:1], setup.noise_std, setup.seed
    )
    measured = np.asarray(degradations.as_image(problem.observation)[0])
    images = {"photograph": np.asarray(setup.truth[0]), "measured": measured}
    for title, name in shown.items():
      path = run.folder / PICTURES / f"{degradation}, {name}.png"
      images[title] = (
        photographs.read(path) / 127.5 - 1 if path.exists() else BLANK
      )
    lines[str(degradation)] = images
  report.section("Pictures")
  report.figure(
    panel(lines),
    f"{setup.names[0]}, restored. Spread: standard deviation over samples, "
    "white at 0.5.",
    photographic=True,
  )


def _shown(rows: pd.DataFrame) -> dict[str, str]:
  """Columns of the panel: title to the picture's name after its case."""
  found: dict[str, str] = {}
  for who in sorted(set(rows[tables.WHO].itertuples(index=False, name=None))):
    name = f"{who[0]} {who[1]} {who[3]}"
    if who[:2] in (("NFC", TUNED), ("DAPS", PUBLISHED)):
      found[tables.words(who)] = name
    if who[:2] == ("NFC", CALIBRATED):
      found["a calibrated sample"] = name
      found["mean of samples"] = f"{name}, mean"
      found["spread"] = f"{name}, spread"
  return found


def _add_papers(report: Report, rows: pd.DataFrame, about: str) -> None:
  report.section("The papers' figures beside ours")
  report.text(PAPERS_TEXT)
  names = list(tables.TASK_NAMES.values())
  theirs = pd.DataFrame(PUBLISHED_PSNR, names, dtype=float).T
  ours = tables.by_task(rows[rows["method"].isin(["NFC", "DAPS"])], "psnr")
  ours.index = [
    f"{tables.words(who)}, here, {who[3] or 'its own'} calls"
    for who in ours.index
  ]
  both = pd.concat([theirs, ours]).rename_axis("setting")
  where = "the papers: 100 faces of FFHQ, fresh kernels; here: " + about
  _add(report, ONE, both, where, "papers")


def _add_standing(
  report: Report, rows: pd.DataFrame, budgets: list[int], about: str
) -> None:
  few, many = budgets[0], budgets[-1]
  about = f"{about} VJPs come on top of calls: the first tables have them."
  lead, loss = "lead [dB]", "loss [dB]"
  for setting, field, words in (
    (TUNED, "psnr", "one sample, NFC tuned"),
    (TUNED, "psnr_mean", "mean of samples, NFC tuned"),
    (CALIBRATED, "psnr_mean", "mean of samples, NFC calibrated"),
  ):
    table = tables.standing(rows, field, setting, many)
    if len(table):
      _add(
        report,
        f"NFC against the best tuned baseline at {many} calls: {words}",
        table,
        about,
        f"standing-{setting}-{field}",
        bad={lead: [behind(gap) for gap in table[lead]]},
      )
  ahead = tables.over_daps(rows, many)
  if not np.isnan(ahead):
    report.text(
      f"On motion blur, over the three kernels, NFC's lead over DAPS as "
      f"published is {ahead:.2f} dB."
    )
  if few < many:
    table = tables.few_steps(rows, few, many)
    bad = {loss: table[loss] > 0.5}
    caption = f"NFC tuned with {few} calls"
    _add(report, caption, table, about, "few-steps", bad=bad)


def _add_parts(report: Report, rows: pd.DataFrame, about: str) -> None:
  """The ablation and wrong assumptions, where they were run."""
  part = rows["part"]
  if (part == ABLATION).any():
    report.text(
      "The paper's setting with and without its two parts, at the tau that "
      "DAPS publishes and at the measurement's own noise."
    )
    table = tables.ablation(rows[part == ABLATION])
    _add(report, f"Ablation, {ONE}", table, about, "ablation")
  if (part == ROBUSTNESS).any():
    table = tables.robustness(rows[part == ROBUSTNESS])
    caption = f"Wrong noise level or kernel assumed, {ONE}"
    _add(report, caption, table, about, "robustness")
