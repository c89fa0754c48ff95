"""How much better one prior denoises a folder of pictures than others do.

    python -m experiments.prior_gain FOLDER PRIOR [BASE]

adds noise of 25, 50 and 15 of 255 levels to the middle 256 x 256 of every
picture (another `--side`), pixels as they are, and prints mean PSNR in dB of
PRIOR and BASE, as `prior_files.load` takes them (BASE is the small shipped one
unless one is named), and the gain with its interval over the pictures; then the
same of both over BM3D and FFDNet, where those are installed. Lines come as soon
as a level is done: 3 minutes for 23 pictures of 256 x 256 and a prior of 14.5
million parameters on two CPU cores; BM3D adds 6 s a picture, FFDNet less than
one. `--table=FILE` writes the same as CSV, `--scores=FILE` the PSNR of every
picture: `prior_gain.csv` beside this file has the scores of `large` and of all
others on 23 Kodak pictures.
"""

import functools
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import app, flags

from experiments.data import photographs
from experiments.harness import paired, prior_files, writing
from experiments.peers import denoisers

LEVELS = (25, 50, 15)
SEED = 0
_SIDE = flags.DEFINE_integer("side", 256, "pixels of the square", lower_bound=8)
_TABLE = flags.DEFINE_string("table", None, "file for the numbers, as CSV")
_SCORES = flags.DEFINE_string("scores", None, "file for every PSNR, as CSV")


class Answers(NamedTuple):
  """What a method made of every picture.

  Attributes:
    name: the prior's or the peer's.
    psnr: [pictures], in dB.
  """

  name: str
  psnr: np.ndarray


def psnr(method: denoisers.Method, truth: np.ndarray, level: int) -> float:
  """Of one denoising in dB; the noise is the same for every method."""
  sigma = 2 * level / 255
  noise = np.random.default_rng([SEED, level]).standard_normal(truth.shape)
  found = method(truth + sigma * noise, sigma)
  # Pictures lie in [-1, 1], so that the peak's square is 4.
  return float(10 * np.log10(4 / np.mean((np.clip(found, -1, 1) - truth) ** 2)))


def line(told: Mapping[str, Any], least: float) -> str:
  """What is printed of a row, by `row`, and of the least gain on a picture."""
  ends = f"[{told['from']:+.2f}, {told['to']:+.2f}]"
  return (
    f"sigma {told['sigma']} of 255, {told['pictures']} pictures: "
    f"{told['prior']} {told['psnr']:.2f} dB, {told['base']} "
    f"{told['base psnr']:.2f}, gain {told['gain']:+.2f} {ends}, least "
    f"{least:+.2f}"
  )


def row(
  side: int, level: int, better: Answers, base: Answers
) -> dict[str, Any]:
  """Of the table: one noise level and two methods."""
  gain = paired.interval(better.psnr - base.psnr)
  return {
    "prior": better.name,
    "base": base.name,
    "sigma": level,
    "pictures": len(base.psnr),
    "side": side,
    "psnr": better.psnr.mean(),
    "base psnr": base.psnr.mean(),
    "gain": gain.value,
    "from": gain.low,
    "to": gain.high,
  }


def pairs(found: Sequence[Answers]) -> list[tuple[Answers, Answers]]:
  """The first over the second, then both of them over each of the others."""
  better, base, *peers = found
  return [(better, base), *itertools.product((better, base), peers)]


def scores(
  level: int, pictures: Sequence[str], found: Sequence[Answers]
) -> list[dict[str, Any]]:
  """A row of every method on every picture, which is known by its file."""
  return [
    {"sigma": level, "picture": name, "method": own.name, "psnr": value}
    for own in found
    for name, value in zip(pictures, own.psnr)
  ]


def _methods(
  named: Sequence[str], side: int
) -> list[tuple[str, denoisers.Method]]:
  """Both priors and the peers, by name.

  Raises:
    OSError: there is no such prior.
    ValueError: as `prior_files.load`, and for a side that one does not take.
  """
  both = [prior_files.load(name) for name in named]
  unit = math.lcm(*(prior.config.unit for prior in both))
  if side % unit:
    raise ValueError(f"--side must be divisible by {unit}, got {side}")
  ours = [functools.partial(denoisers.learned, prior) for prior in both]
  names = map(prior_files.named, named)
  return [*zip(names, ours), *denoisers.peers().items()]


def main(argv: Sequence[str]) -> None:
  """Prints lines for each noise level."""
  if not 3 <= len(argv) <= 4:
    raise app.UsageError("give the folder of pictures, and one or two priors")
  (folder, *named), side = argv[1:], _SIDE.value
  try:
    files = photographs.files_in(folder)
    pictures = [
      photographs.crops(file, side, 1)[0].astype(np.float64) for file in files
    ]
    methods = _methods([*named, prior_files.SHIPPED][:2], side)
  except (OSError, ValueError) as error:
    raise app.UsageError(str(error)) from None
  for sentence in denoisers.left_out():
    print(sentence)
  rows, every = [], []
  for level in LEVELS:
    found = [
      Answers(name, np.array([psnr(method, x, level) for x in pictures]))
      for name, method in methods
    ]
    for better, base in pairs(found):
      rows.append(row(side, level, better, base))
      print(line(rows[-1], min(better.psnr - base.psnr)), flush=True)
    every += scores(level, [file.name for file in files], found)
    _write(_TABLE.value, rows)
    _write(_SCORES.value, every)


def _write(path: str | None, rows: Sequence[dict[str, Any]]) -> None:
  """Rows so far as CSV, where a path is given."""
  if path:
    text = pd.DataFrame(rows).to_csv(index=False, float_format="%.4f")
    writing.write(pathlib.Path(path), text)


if __name__ == "__main__":
  app.run(main)
