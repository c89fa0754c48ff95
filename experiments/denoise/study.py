"""How well the photo prior denoises photographs that it never saw.

  python -m experiments.denoise

Settings: `configs/denoise.py`. Baselines: BM3D and FFDNet (left out with a
sentence, which says how, where they are not installed), a Wiener filter,
non-local means. Over a folder of pictures: `experiments.prior_gain`.
"""

import dataclasses
import itertools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import photographs
from experiments.denoise import report
from experiments.harness import prior_files, record, writing
from experiments.harness.progress import Progress, Tick
from experiments.harness.settings import DTYPES, Checked, setting
from experiments.peers import denoisers, ffdnet
from experiments.peers.denoisers import NOISY
from posterior_jax import metrics

Key = tuple[str, int, float]  # photograph, size, sigma


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison."""

  seed: int  # of the noise
  prior: str  # a file of `prior_files.load`, or "" for the small shipped one
  # of the network's arithmetic
  dtype: str = setting(among=DTYPES)
  # names, none of which a prior may have learned from
  photographs: tuple[str, ...] = setting(some=True)
  size: int = setting(at_least=8, multiple_of=8)  # their side
  # standard deviations of the noise, of 255 levels
  sigmas: tuple[float, ...] = setting(
    above=0, some=True, words="sigmas must be positive"
  )
  other: str  # the photograph that is also restored at other sizes
  other_sizes: tuple[int, ...] = setting(at_least=8, multiple_of=8)  # those

  def __post_init__(self) -> None:
    super().__post_init__()
    names = {*self.photographs, self.other}
    if names - set(photographs.HELD_OUT):
      raise ValueError(
        f"photographs and other must be among "
        f"{', '.join(photographs.HELD_OUT)}; got {', '.join(sorted(names))}"
      )


class Task(NamedTuple):
  """The settings, and every method under the prior that they name."""

  settings: Settings
  methods: dict[str, denoisers.Method]


def prepare(settings: Settings) -> Task:
  """Reads the prior, and the weights of methods that have some."""
  prior = prior_files.load(settings.prior, dtype=settings.dtype)
  return Task(settings, denoisers.methods(prior))


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the photographs, a prior of one's own and FFDNet's weights."""
  settings = task.settings
  files = map(photographs.path, (*settings.photographs, settings.other))
  weights = [ffdnet.weights()] if denoisers.FFDNET in task.methods else []
  return (
    prior_files.digests(settings.prior)
    | writing.digests("photograph", files)
    | writing.digests("ffdnet", weights)
  )


def denoise(task: Task, run: record.Run) -> None:
  """Compares the methods, writes the table and the report."""
  settings, methods = task
  for sentence in denoisers.left_out():
    print(sentence)
  found, answers = cases(settings), {}
  with Progress(len(found) * len(methods), label="denoise") as tick:
    for case in found:
      answers[case] = compare(case, methods, settings.seed, run, tick)
  about = f"{', '.join(settings.photographs)}, seed {settings.seed}"
  report.write(run, settings.size, answers, about)


def cases(settings: Settings) -> list[Key]:
  """Every photograph, size and noise level."""
  return [
    (name, settings.size, sigma)
    for sigma, name in itertools.product(settings.sigmas, settings.photographs)
  ] + [
    (settings.other, size, sigma)
    for size, sigma in itertools.product(settings.other_sizes, settings.sigmas)
  ]


def noisy(case: Key, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """The photograph and its noisy version, [H, W, 3] float64, not clipped."""
  name, size, sigma = case
  truth = photographs.load(name, size).astype(np.float64)
  place = photographs.HELD_OUT.index(name)
  rng = np.random.default_rng([seed, place, size, round(1000 * sigma)])
  return truth, truth + 2 * sigma / 255 * rng.standard_normal(truth.shape)


def compare(
  case: Key,
  methods: dict[str, denoisers.Method],
  seed: int,
  run: record.Run,
  tick: Tick,
) -> report.Images:
  """Every method on one photograph, whose rows go into the table "denoise".

  Returns:
    The photograph and what every method made of it.
  """
  name, size, sigma = case
  truth, y = noisy(case, seed)
  images = {"photograph": truth}
  for method, restore in methods.items():
    tick(f"{name} {size} sigma {sigma:g} {method}")
    if method in (denoisers.PRIOR, denoisers.WIENER, denoisers.FFDNET):
      restore(y, 2 * sigma / 255)  # compiles
    start = time.monotonic()
    x = images[method] = restore(y, 2 * sigma / 255)
    seconds = time.monotonic() - start if method != NOISY else 0.0
    row = {"photograph": name, "size": size, "sigma": sigma, "method": method}
    pair = jnp.asarray(x, jnp.float32), jnp.asarray(truth, jnp.float32)
    for score, value in _scores(*pair).items():
      row[score] = float(value)
    run.write("denoise", row | {"seconds": seconds})
  return images


@jax.jit
def _scores(x: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
  return {"psnr": metrics.psnr(x, truth), "ssim": metrics.ssim(x, truth)}
