"""The report of the denoising comparison."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.harness import record
from experiments.harness import report as reports
from experiments.peers.denoisers import NOISY

if TYPE_CHECKING:
  from experiments.denoise.study import Answers, Key, Settings


def write(
  run: record.Run, settings: "Settings", answers: Mapping["Key", "Answers"]
) -> pathlib.Path:
  """Writes `report.html` from the run's table and pictures.

  Args:
    run: whose `denoise.jsonl` is complete.
    settings: what was done.
    answers: images by photograph, size and sigma.

  Returns:
    Its path.
  """
  lines = (run.folder / "denoise.jsonl").read_text(encoding="utf-8")
  rows = [json.loads(line) for line in lines.splitlines()]
  found = run.environment
  measured = (
    f"{', '.join(settings.photographs)}, seed {settings.seed}, "
    f"{found['devices'][0]}, {found['cpus']} CPUs"
  )
  report = reports.Report(
    "Denoising photographs",
    f"Command: `{found['command']}`. Noise is added to pixels and not clipped; "
    "sigma counts levels of 255; every method is told sigma.",
  )
  report.section(f"Mean PSNR at {settings.size} pixels")
  _add_means(report, [r for r in rows if r["size"] == settings.size], measured)
  report.section("Every photograph")
  _add_all(report, rows, measured)
  report.section("Pictures")
  strongest = max(settings.sigmas)
  for (name, size, sigma), shown in answers.items():
    if sigma == strongest:
      report.figure(
        panel(shown),
        f"{name}, {size} pixels, sigma {sigma:g} of 255.",
        photographic=True,
      )
  return report.write(run.folder / "report.html")


def panel(answers: "Answers") -> Any:
  """The photograph and every answer side by side: a matplotlib figure."""
  import matplotlib.pyplot as plt

  images = {"photograph": answers.truth, **answers.images}
  side = max(2.2, len(answers.truth) / 120)
  figure, axes = plt.subplots(
    1, len(images), figsize=(side * len(images), side), layout="constrained"
  )
  for axis, (name, image) in zip(axes, images.items()):
    axis.imshow(np.clip(image / 2 + 0.5, 0, 1), interpolation="nearest")
    axis.set_title(name, fontsize=8)
    axis.set_axis_off()
  return figure


def _add_means(
  report: reports.Report, rows: Sequence[dict], measured: str
) -> None:
  sigmas = sorted({row["sigma"] for row in rows})
  lines = []
  for method in dict.fromkeys(row["method"] for row in rows):
    own = [row for row in rows if row["method"] == method]
    means = [
      float(np.mean([row["psnr"] for row in own if row["sigma"] == sigma]))
      for sigma in sigmas
    ]
    seconds = float(np.median([row["seconds"] for row in own]))
    lines.append(
      [
        method,
        *(reports.Cell(mean, 2) for mean in means),
        None if method == NOISY else reports.Cell(seconds, 2),
      ]
    )
  report.table(
    "PSNR in dB, mean over the photographs, and seconds a photograph",
    ["method", *(f"sigma {sigma:g}" for sigma in sigmas), "seconds"],
    lines,
    measured_on=measured,
    name="means",
  )


def _add_all(
  report: reports.Report, rows: Sequence[dict], measured: str
) -> None:
  methods = list(dict.fromkeys(row["method"] for row in rows))
  cases = dict.fromkeys((r["photograph"], r["size"], r["sigma"]) for r in rows)
  by_case = {
    (r["photograph"], r["size"], r["sigma"], r["method"]): r for r in rows
  }
  report.table(
    "PSNR in dB",
    ["photograph", "pixels", "sigma", *methods],
    [
      [*case, *(reports.Cell(by_case[*case, m]["psnr"], 2) for m in methods)]
      for case in cases
    ],
    measured_on=measured,
    name="all",
  )
