"""The pages of one restored picture."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.data import degradations
from experiments.harness.reporting import pictures
from experiments.harness.reporting.report import Report
from experiments.restore import image_settings
from experiments.restore.measurement.observed import Given
from posterior_jax import Operator

SHOWN_SAMPLES = 2
IMPROBABLE = 5.0  # degrees, below which a kernel may be as it was given
LEVELS = 127.5  # of 255, a unit of pixels in [-1, 1]
# Whose scores a row has, by the ending of their columns' names.
ROWS = {
  "_given": "as given, enlarged where it is smaller",
  "": "restored",
  "_mean": "mean of the samples",
  "_sample": "one sample",
}


class Restored(NamedTuple):
  """What became of a picture, pixels in [-1, 1]."""

  best: np.ndarray  # the one image, [H, W, C]
  samples: np.ndarray  # of the posterior, [m, H, W, C]

  def within(self, operator: Operator) -> "Restored":
    """What the picture shows of images of the scene."""
    return Restored(
      *(np.asarray(operator.interior(jnp.asarray(x))) for x in self)
    )


def uncertainty(samples: np.ndarray) -> Any:
  """Map of the samples' standard deviation, with its scale; a figure.

  Args:
    samples: [m, H, W, C], m at least 2.
  """
  import matplotlib.pyplot as plt

  spread = LEVELS * np.sqrt(samples.var(0, ddof=1).mean(-1))  # [H, W]
  height, width = spread.shape
  figure, axis = plt.subplots(
    figsize=(6.4, 5.6 * height / width + 0.4), layout="constrained"
  )
  shown = axis.imshow(
    spread, cmap="magma", vmin=0, vmax=max(np.quantile(spread, 0.995), 1e-3)
  )
  axis.set(xticks=[], yticks=[])
  axis.set_title(f"Spread of {len(samples)} samples", fontsize=9)
  bar = figure.colorbar(shown, ax=axis, shrink=0.9, extend="max")
  bar.set_label("standard deviation of a pixel [levels of 255]", fontsize=8)
  bar.ax.tick_params(labelsize=8)
  return figure


def write(
  folder: pathlib.Path,
  origin: str,
  given: Given,
  restored: Restored,
  row: Mapping[str, Any],
) -> pathlib.Path:
  """Writes `report.html` and returns its path.

  Args:
    folder: takes it.
    origin: of the numbers, see `record.Run.origin`.
    given: the picture.
    restored: what became of it.
    row: of the table.
  """
  report = Report(
    f"{pathlib.Path(row['image']).name} restored",
    f"{origin} Pictures at full size lie there too.",
  )
  report.section("Pictures")
  caption = _caption(row, given)
  report.figure(panel(given, restored), caption, photographic=True)
  if len(restored.samples) > 1:
    report.text(
      "Samples of the posterior are pictures that the measurement and the "
      "prior leave possible. Where they agree the picture is known, where they "
      "differ it is guessed: the map shows their standard deviation, root mean "
      "square over the channels, its top half percent clipped. It does not "
      "know of a wrong kernel, mask or noise level."
    )
    if row["method"] != "NFC":
      report.text(
        f"{row['method']} is not calibrated: where the posterior is known, its "
        "samples spread more or less than they should (README says by how "
        "much), so the map ranks places and is no error bar."
      )
    report.figure(
      uncertainty(restored.samples),
      f"Where to trust the result, from {len(restored.samples)} samples.",
    )
  if row.get("degrees") is not None:
    sentence = turn(row)
    report.text(f"{sentence[0].upper()}{sentence[1:]}.")
  report.section("Numbers")
  report.text(
    "The residual is |y - A x|^2 over its expected value for the true "
    "picture: near 1 where picture, kernel or mask, and noise_std agree; far "
    "above 1 where one of them is wrong, below 1 for a mean or where noise_std "
    "is too large."
  )
  report.table(
    "Fit, and quality where the clean picture is known",
    scores(row).dropna(axis="columns", how="all"),
    digits={"residual": 2, "PSNR [dB]": 2, "SSIM": 3},
    measured_on=f"{row['image']}, seed {row['seed']}; {row['seconds']:.0f} s, "
    f"compilation included, {row['calls']} calls of the denoiser and "
    f"{row['products']} products with its Jacobian.",
    name="restore",
  )
  return report.write(folder / "report.html")


def panel(given: Given, restored: Restored) -> Any:
  """The picture and what became of it, side by side: a figure."""
  images = {} if given.truth is None else {"clean": np.asarray(given.truth[0])}
  images["as given"] = np.asarray(degradations.as_image(given.observation)[0])
  images["restored"] = restored.best
  for i, sample in enumerate(restored.samples[:SHOWN_SAMPLES], 1):
    images[f"sample {i}"] = sample
  return pictures.panel(pictures.wrapped(images, columns=3), side=3.4)


def scores(row: Mapping[str, Any]) -> pd.DataFrame:
  """The row's scores, a line a picture."""
  columns = {"residual": "residual", "psnr": "PSNR [dB]", "ssim": "SSIM"}
  lines = {
    words: {title: row[name + of] for name, title in columns.items()}
    for of, words in ROWS.items()
  }
  lines[ROWS["_given"]]["residual"] = None  # not an answer
  found = pd.DataFrame.from_dict(lines, orient="index", dtype=float)
  return found.dropna(how="all").rename_axis("picture")


def summary(row: Mapping[str, Any]) -> list[str]:
  """What is printed at the end, a line each."""
  lines = [
    f"{row['width']} x {row['height']} in {row['seconds']:.0f} s, "
    f"{row['calls']} calls of the denoiser and {row['products']} products with "
    f"its Jacobian; residual {row['residual']:.2f}"
  ]
  if row.get("degrees") is not None:
    lines.append(turn(row))
  for words, (_, psnr, ssim) in scores(row).dropna(subset="SSIM").iterrows():
    lines.append(f"{words}: PSNR {psnr:.2f} dB, SSIM {ssim:.3f}")
  return lines


def turn(row: Mapping[str, Any]) -> str:
  """How far the kernel is turned, in a sentence."""
  spread = row["degrees_std"]
  about = "" if spread is None else f", {spread:.1f} from sample to sample"
  line = f"the kernel is turned by {row['degrees']:.1f} degrees{about}"
  if abs(row["degrees"]) > max(IMPROBABLE, 2 * (spread or 0)):
    line += "; as it was given it is improbable"
  return line


def _caption(row: Mapping[str, Any], given: Given) -> str:
  how = f"the mean of {row['samples']} samples of {row['method']}, tuned"
  if row["method"] == "NFC":
    samples = "; samples by its calibrated() setting" if row["samples"] else ""
    coloured = given.coloured()
    fast = image_settings.plug_and_play(coloured, row["levels"])
    setting = ("fast" if fast else "restoration") + "() setting"
    if image_settings.blurred_little(coloured):
      setting = "plug-and-play levels, which follow the noise"
    elif image_settings.follows_noise(coloured):
      setting += " with last levels that follow the noise"
    how = f"NFC's {setting}{samples}"
  return (
    f"{row['task'].replace('_', ' ')}, noise {row['noise_std']:g} on pixels in "
    f"[-1, 1], {LEVELS * row['noise_std']:.1f} levels of 255. Restored: {how}."
  )
