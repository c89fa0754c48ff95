"""The report of a training run: samples and their spectrum."""

import jax
import numpy as np

from experiments.harness import record
from experiments.harness import report as reports
from experiments.train_prior import batches, figures
from experiments.train_prior.batches import BatchSettings, Pool
from posterior_jax.priors import UNetPrior

# Where the spectrum is judged, in cycles per pixel.
JUDGED = (1 / 64, 1 / 4)
COLUMNS, SHOWN = 8, 32  # of the samples in a picture


def write(
  prior: UNetPrior,
  pool: Pool,
  run: record.Run,
  *,
  count: int,
  sizes: tuple[int, ...],
  steps: int,
  seed: int,
) -> None:
  """Draws samples, compares their spectrum, writes `report.html`.

  Args:
    prior: what was trained.
    pool: its photographs give the spectrum to meet.
    run: takes pictures, tables and the report.
    count: samples of each size, and crops of the photographs.
    sizes: sides of the samples.
    steps: of the ODE.
    seed: of the draws.
  """
  found = run.environment
  report = reports.Report(
    "Photo prior: what was learned",
    f"Command: `{found['command']}`. The tables beside this file hold every "
    "number; `training.csv` the course of the loss.",
  )
  report.section("Unconditional samples")
  pairs = {}
  for size in sizes:
    key = jax.random.fold_in(jax.random.key(seed), size)
    drawn, real = _draws(prior, pool, key, count=count, size=size, steps=steps)
    pairs[size] = (
      figures.radial_spectrum(drawn),
      figures.radial_spectrum(real),
    )
    for name, images in (("samples", drawn), ("photographs", real)):
      picture = figures.pictures(images[:SHOWN], COLUMNS)
      jpeg = reports.render(picture, "jpeg")
      (run.folder / f"{name}_{size}.jpg").write_bytes(jpeg)
    report.figure(
      figures.pictures(drawn[:SHOWN], COLUMNS),
      f"Samples of {size} pixels, Heun's method, {steps} steps.",
      photographic=True,
    )
  measured = f"{count} samples a size, {found['devices'][0]}, seed {seed}"
  _add_spectrum(report, pairs, run, measured)
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


def _add_spectrum(
  report: reports.Report,
  pairs: figures.Pairs,
  run: record.Run,
  measured: str,
) -> None:
  report.section("Their spectrum")
  report.figure(
    figures.spectrum_figure(pairs),
    "Radial power of samples and of the training photographs' crops, and their "
    "ratio; the band is 2 dB wide to either side.",
  )
  report.table(
    "Samples over photographs, from 1/64 to 1/4 cycles per pixel",
    ["pixels", "lowest [dB]", "highest [dB]", "mean [dB]"],
    [_judged(size, *pair, run) for size, pair in pairs.items()],
    measured_on=measured,
    name="spectrum",
  )


def _draws(
  prior: UNetPrior,
  pool: Pool,
  key: jax.Array,
  *,
  count: int,
  size: int,
  steps: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Samples and plain crops of photographs, [count, size, size, 3] each."""
  keys = jax.random.split(key)
  drawn = figures.sample(prior, keys[0], count=count, size=size, steps=steps)
  plain = BatchSettings(leaf_share=0.0, jitter=0.0)
  # Photographs differ more than their sizes tell: many crops.
  real = batches.crops(
    keys[1], pool, count=16 * count, size=size, settings=plain
  )
  return np.asarray(drawn), np.asarray(real)


def _judged(
  size: int,
  found: figures.Spectrum,
  real: figures.Spectrum,
  run: record.Run,
) -> list:
  ratio = figures.decibels(found, real)
  for frequency, a, b, db in zip(
    real.frequency, found.power, real.power, ratio
  ):
    run.write(
      "spectrum",
      {
        "size": size,
        "frequency": frequency,
        "samples": a,
        "photographs": b,
        "decibels": db,
      },
    )
  low, high = JUDGED
  inside = ratio[(real.frequency >= low) & (real.frequency <= high)]
  cells = (inside.min(), inside.max(), inside.mean())
  return [size, *(reports.Cell(float(value), 2) for value in cells)]
