"""How well the photo prior denoises photographs that it never saw.

  python -m experiments.denoise

Settings: `configs/denoise.py`. Rivals: BM3D (`pip install bm3d`, left out with
a sentence where it is not installed), a Wiener filter, non-local means.
"""

import dataclasses
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.data import photographs
from experiments.denoise import report
from experiments.harness import record
from experiments.harness.progress import Progress, Tick
from experiments.peers import denoisers
from experiments.peers.denoisers import NOISY
from posterior_jax import metrics, priors


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the comparison.

  Attributes:
    seed: of the noise.
    prior: a manifest as `train_prior` writes it, or "" for the shipped one.
    dtype: of the network's arithmetic.
    photographs: names, none of which a prior may have learned from.
    size: their side.
    sigmas: standard deviations of the noise, of 255 levels.
    other: the photograph that is also restored at other sizes.
    other_sizes: those.
  """

  seed: int
  prior: str
  dtype: str
  photographs: tuple[str, ...]
  size: int
  sigmas: tuple[float, ...]
  other: str
  other_sizes: tuple[int, ...]

  def __post_init__(self):
    """Refuses photographs that were learned from, and levels out of range."""
    names = {*self.photographs, self.other}
    if not self.photographs or names - set(photographs.HELD_OUT):
      raise ValueError(
        f"photographs and other must be among "
        f"{', '.join(photographs.HELD_OUT)}; got {', '.join(sorted(names))}"
      )
    if not self.sigmas or min(self.sigmas) <= 0:
      raise ValueError(f"sigmas must be positive, got {self.sigmas}")


class Row(NamedTuple):
  """One answer.

  Attributes:
    photograph: its name.
    size: its side.
    sigma: of the noise, of 255 levels.
    method: who answered.
    psnr: in dB.
    ssim: at most 1.
    seconds: of the answer, compiled.
  """

  photograph: str
  size: int
  sigma: float
  method: str
  psnr: float
  ssim: float
  seconds: float


class Answers(NamedTuple):
  """One photograph under one noise: images [H, W, 3] in [-1, 1].

  Attributes:
    truth: the photograph.
    images: what every method made of it.
  """

  truth: np.ndarray
  images: dict[str, np.ndarray]


Key = tuple[str, int, float]  # photograph, size, sigma


def denoise(settings: Settings, run: record.Run) -> None:
  """Compares the methods, writes the table and the report."""
  prior = (
    priors.load_prior(settings.prior, dtype=settings.dtype)
    if settings.prior
    else priors.photo_prior(dtype=settings.dtype)
  )
  methods = denoisers.methods(prior)
  if denoisers.BM3D not in methods:
    print("BM3D is left out: it needs `pip install bm3d`")
  cases = problems(settings)
  answers = {}
  with Progress(len(cases) * len(methods), label="denoise") as tick:
    for case in cases:
      rows, answers[case] = compare(case, methods, settings.seed, tick)
      for row in rows:
        run.write("denoise", row._asdict())
  path = report.write(run, settings, answers)
  print(f"report: {report.reports.shown(path)}")


def problems(settings: Settings) -> list[Key]:
  """Every photograph, size and noise level."""
  cases = [
    (name, settings.size, sigma)
    for sigma in settings.sigmas
    for name in settings.photographs
  ]
  return cases + [
    (settings.other, size, sigma)
    for size in settings.other_sizes
    for sigma in settings.sigmas
  ]


def noisy(case: Key, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """The photograph and its noisy version, [H, W, 3] float64, not clipped."""
  name, size, sigma = case
  truth = photographs.load(name, size).astype(np.float64)
  place = photographs.HELD_OUT.index(name)
  rng = np.random.default_rng([seed, place, size, round(1000 * sigma)])
  return truth, truth + 2 * sigma / 255 * rng.standard_normal(truth.shape)


def compare(
  case: Key, methods: dict[str, denoisers.Method], seed: int, tick: Tick
) -> tuple[list[Row], Answers]:
  """Every method on one photograph; a call before the timed one compiles."""
  name, size, sigma = case
  truth, y = noisy(case, seed)
  rows, images = [], {}
  for method, restore in methods.items():
    tick(f"{name} {size} sigma {sigma:g} {method}")
    if method in (denoisers.PRIOR, denoisers.WIENER):
      restore(y, 2 * sigma / 255)
    start = time.monotonic()
    x = restore(y, 2 * sigma / 255)
    seconds = time.monotonic() - start if method != NOISY else 0.0
    images[method] = x
    pair = jnp.asarray(x, jnp.float32), jnp.asarray(truth, jnp.float32)
    psnr, ssim = (float(f(*pair)) for f in (metrics.psnr, metrics.ssim))
    rows.append(Row(name, size, sigma, method, psnr, ssim, seconds))
  return rows, Answers(truth, images)
