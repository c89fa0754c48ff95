"""The report of the denoising comparison."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from experiments.harness import record
from experiments.harness.reporting.pictures import panel
from experiments.harness.reporting.report import Report
from experiments.peers.denoisers import NOISY

CASE = ["photograph", "pixels", "sigma"]
Images = dict[str, np.ndarray]  # [H, W, 3] in [-1, 1], by method


def write(
  run: record.Run,  # whose table "denoise" is complete
  size: int,  # the side whose means are told
  # images by photograph, size and sigma
  answers: Mapping[tuple[str, int, float], Images],
  about: str,  # what was measured
) -> None:
  """Writes `report.html` from the run's table and pictures, prints its path."""
  rows = run.frame("denoise").rename(columns={"size": "pixels"})
  report = Report(
    "Denoising photographs",
    f"{run.origin()} Noise is added to pixels and not clipped; sigma counts "
    "levels of 255; every method is told sigma.",
  )
  report.section(f"Mean PSNR at {size} pixels")
  report.table(
    "PSNR in dB, mean over the photographs, and seconds a photograph",
    means(rows[rows["pixels"] == size]),
    digits=2,
    measured_on=about,
    name="means",
  )
  report.section("Every photograph")
  every = rows.pivot(index=CASE, columns="method", values="psnr")
  every = every.reindex(pd.MultiIndex.from_frame(rows[CASE].drop_duplicates()))
  methods = rows["method"].unique()
  report.table(
    "PSNR in dB",
    every[methods],
    digits=dict.fromkeys(methods, 2),
    measured_on=about,
    name="all",
  )
  report.section("Pictures")
  strongest = rows["sigma"].max()
  for (name, side, sigma), images in answers.items():
    if sigma == strongest:
      report.figure(
        panel({"": images}, side=max(2.2, side / 120)),
        f"{name}, {side} pixels, sigma {sigma:g} of 255.",
        photographic=True,
      )
  report.leave(run.folder)


def means(rows: pd.DataFrame) -> pd.DataFrame:
  """By method: mean PSNR at every sigma, and the median seconds."""
  by_method = rows.groupby("method", sort=False)
  found = rows.pivot_table("psnr", "method", "sigma", sort=True)
  found.columns = [f"sigma {sigma:g}" for sigma in found.columns]
  found = found.reindex(rows["method"].unique())
  return found.assign(seconds=by_method["seconds"].median().drop(NOISY))
