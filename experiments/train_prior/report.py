"""The report of a training run: samples and their spectrum."""

import jax
import numpy as np
import pandas as pd

from experiments.harness import record, writing
from experiments.harness.reporting import report as reports
from experiments.train_prior import batches, figures
from experiments.train_prior.batches import BatchSettings, Pool
from posterior_jax.priors import UNetPrior

# Where the spectrum is compared, in cycles per pixel.
COMPARED = (1 / 64, 1 / 4)
COLUMNS, SHOWN = 8, 32  # of the samples in a picture
# Photographs differ more than their sizes tell: many crops for every sample.
CROPS = 16


def write(
  prior: UNetPrior,  # what was trained
  pool: Pool,  # its photographs give the spectrum to meet
  run: record.Run,  # takes pictures, tables and the report
  *,
  count: int,  # samples of each size
  sizes: tuple[int, ...],  # sides of the samples
  steps: int,  # of the ODE
  seed: int,  # of the draws
) -> None:
  """Draws samples, compares their spectrum, writes `report.html`."""
  report = reports.Report(
    "Photo prior: what was learned",
    f"{run.origin()} `training.csv` has the course of the loss.",
  )
  report.section("Unconditional samples")
  plain = BatchSettings(leaf_share=0.0, jitter=0.0)
  spectra = []
  for size in sizes:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), size))
    images = {
      "samples": figures.sample(
        prior, keys[0], count=count, size=size, steps=steps
      ),
      "photographs": batches.crops(
        keys[1], pool, count=CROPS * count, size=size, settings=plain
      ),
    }
    for name, drawn in images.items():
      picture = figures.pictures(np.asarray(drawn[:SHOWN]), COLUMNS)
      jpeg = reports.render(picture, "jpeg")
      writing.write(run.folder / f"{name}_{size}.jpg", jpeg)
    report.figure(
      figures.pictures(np.asarray(images["samples"][:SHOWN]), COLUMNS),
      f"Samples of {size} pixels, Heun's method, {steps} steps.",
      photographic=True,
    )
    spectra.append(figures.compared(size, **images))
  _add_spectrum(
    report,
    run,
    pd.concat(spectra, ignore_index=True),
    f"{count} samples a size, seed {seed}",
  )
  report.leave(run.folder)


def _add_spectrum(
  report: reports.Report,
  run: record.Run,
  spectrum: pd.DataFrame,  # rows of `figures.compared`
  about: str,  # what they were measured on
) -> None:
  for row in spectrum.itertuples(index=False):
    run.write_once("spectrum", row, ("size", "frequency"))
  report.section("Their spectrum")
  report.figure(
    figures.spectrum_figure(spectrum),
    "Radial power of samples and of the training photographs' crops, and their "
    "ratio; the band is 2 dB wide to either side.",
  )
  inside = spectrum[spectrum["frequency"].between(*COMPARED)]
  ratios = inside.groupby("size", sort=False)["decibels"]
  headings = {"min": "lowest", "max": "highest", "mean": "mean"}
  extremes = ratios.agg(list(headings)).rename(columns=headings)
  errors = inside.groupby("size", sort=False)["error"]
  extremes["largest standard error"] = errors.max()
  extremes = extremes.rename_axis("pixels").add_suffix(" [dB]")
  report.table(
    "Samples over photographs, from 1/64 to 1/4 cycles per pixel",
    extremes,
    digits=dict.fromkeys(extremes.columns, 2),
    measured_on=about,
    name="spectrum",
  )
