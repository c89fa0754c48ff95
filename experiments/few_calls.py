"""`NFCConfig.fast()` beside plug-and-play and DiffPIR, at few network calls.

  python -m experiments.few_calls --config.folder=PICTURES

Settings: `configs/few_calls.py`. Baselines are tuned on `photographs.TUNING`
for every task and number of calls; `fast()` is one setting for all. Pictures
are cut from the middle, not averaged down.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import posterior_jax as pj
from experiments.data import degradations, photographs
from experiments.data.degradations import Degradation
from experiments.harness import prior_files, progress, record, runner
from experiments.harness.settings import Checked, setting
from experiments.peers.dpir import dpir
from experiments.restoration import setup
from posterior_jax import Observation
from posterior_jax.base import Denoiser
from posterior_jax.baselines import DiffPIRConfig, diffpir

TABLE = "few_calls"
FAST, DPIR, DIFFPIR = "NFC, fast()", "DPIR", "DiffPIR"

Restore = Callable[[Denoiser, Observation, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison."""

  seed: int  # of noise and samplers
  folder: str  # of the pictures
  pictures: int = setting(at_least=2)  # how many, the first by name
  size: int = setting(at_least=32, multiple_of=8)  # side of the crops
  noise_std: float = setting(above=0)
  prior: str  # a file of `prior_files.load`, "" for the shipped one
  tasks: tuple[str, ...] = setting(some=True)  # of `degradations.FROZEN`
  calls: tuple[int, ...] = setting(at_least=2, some=True)
  dpir_weights: tuple[float, ...] = setting(above=0, some=True)
  diffpir_weights: tuple[float, ...] = setting(above=0)  # () leaves it out

  def __post_init__(self) -> None:
    super().__post_init__()
    photographs.files_in(self.folder)
    setup.degradations_named(self.tasks)


def middle(file: pathlib.Path, size: int) -> np.ndarray:
  """The middle of a picture as it is, [size, size, 3] in [-1, 1]."""
  pixels = photographs.read(file)
  top, left = ((extent - size) // 2 for extent in pixels.shape[:2])
  crop = pixels[top : top + size, left : left + size]
  return (crop / 127.5 - 1).astype(np.float32)


def methods(
  settings: Settings, spectrum: jax.Array, calls: int
) -> dict[str, dict[str, Restore]]:
  """By method and by point of its grid: what restores."""

  def run(sampler: pj.Sampler) -> Restore:
    return lambda denoise, observation, key: pj.run(
      sampler, denoise, observation, key
    )[0][0]

  def split(weight: float) -> Restore:
    return lambda denoise, observation, key: dpir(
      denoise, observation, weight=weight, calls=calls
    )

  found: dict[str, dict[str, Restore]] = {
    FAST: {"": run(pj.nfc(pj.NFCConfig.fast(levels=calls), spectrum=spectrum))},
    DPIR: {f"weight {w:g}": split(w) for w in settings.dpir_weights},
  }
  if settings.diffpir_weights:
    found[DIFFPIR] = {
      f"weight {w:g}": run(diffpir(DiffPIRConfig.tuned(levels=calls, weight=w)))
      for w in settings.diffpir_weights
    }
  return found


def compared(
  settings: Settings,
  degradation: Degradation,
  calls: int,
  denoise: Denoiser,
  truths: Mapping[str, np.ndarray],
  tuning: np.ndarray,
) -> Iterator[dict[str, Any]]:
  """A row for every method and picture, baselines at their best point."""
  known = degradations.build_prior(settings.size)
  sets = {
    name: degradations.measure(
      degradation, jnp.asarray(images), settings.noise_std, settings.seed + i
    )
    for i, (name, images) in enumerate(
      (("report", np.stack([*truths.values()])), ("tuning", tuning))
    )
  }
  key = jax.random.key(settings.seed)
  for method, points in methods(settings, known.spectrum, calls).items():
    scores = {}
    if len(points) > 1:
      problem = sets["tuning"]
      for point, restore in points.items():
        x = restore(denoise, problem.observation, key)
        scores[point] = float(pj.metrics.psnr(x, problem.truth).mean())
    best = max(scores, key=scores.__getitem__) if scores else next(iter(points))
    problem = sets["report"]
    x = points[best](denoise, problem.observation, key)
    for name, psnr in zip(truths, pj.metrics.psnr(x, problem.truth)):
      yield {
        "task": str(degradation),
        "calls": calls,
        "method": method,
        "point": best,
        "picture": name,
        "psnr": float(psnr),
      }


def differences(rows: pd.DataFrame) -> pd.DataFrame:
  """fast() less every baseline, paired by picture: mean and 95 % interval.

  Args:
    rows: of the table.

  Returns:
    By task, calls and baseline: its PSNR, that of fast(), the mean difference,
    half the width of its interval, and the number of pictures.
  """
  case = ["task", "calls"]
  wide = rows.pivot_table("psnr", [*case, "picture"], "method", sort=False)
  found = []
  for about, own in wide.groupby(case, sort=False):
    for baseline in own.columns.drop(FAST):
      gap = (own[FAST] - own[baseline]).dropna()
      found.append(
        {
          **dict(zip(case, about)),
          "baseline": baseline,
          "its PSNR": own[baseline].mean(),
          "fast()": own[FAST].mean(),
          "difference": gap.mean(),
          "half of 95 %": 1.96 * gap.std(ddof=1) / len(gap) ** 0.5,
          "pictures": len(gap),
        }
      )
  return pd.DataFrame(found).set_index([*case, "baseline"])


def compare(settings: Settings, run: record.Run) -> None:
  """Writes the rows as they come, then prints the paired differences."""
  denoise = prior_files.load(settings.prior, dtype="float32").denoise
  files = photographs.files_in(settings.folder)[: settings.pictures]
  truths = {file.name: middle(file, settings.size) for file in files}
  tuning = np.stack(
    [
      middle(photographs.path(name), settings.size)
      for name in photographs.TUNING
    ]
  )
  cases = [
    (degradation, calls)
    for degradation in setup.degradations_named(settings.tasks)
    for calls in settings.calls
  ]
  with progress.Progress(len(cases), label=TABLE) as tick:
    for degradation, calls in cases:
      tick(f"{degradation}, {calls} calls")
      for row in compared(
        settings, degradation, calls, denoise, truths, tuning
      ):
        run.write(TABLE, row)
      print(differences(run.frame(TABLE)).round(2).to_string(), flush=True)


if __name__ == "__main__":
  runner.main("few_calls", Settings, compare)
