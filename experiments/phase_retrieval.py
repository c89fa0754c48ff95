"""Phase retrieval of photographs: noise-frequency continuation beside DAPS.

  python -m experiments.phase_retrieval --config.folder=PICTURES

Settings: `configs/phase_retrieval.py`. The protocol of DAPS: amplitudes of the
Fourier transform, oversampling 2, every photograph restored a few times from
other noise, and the best of them reported. An image and its turn by 180 degrees
have the same amplitudes and count as one.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.data import degradations, photographs
from experiments.harness import prior_files, record, runner, writing
from experiments.harness.progress import Progress
from experiments.harness.settings import DTYPES, Checked, setting
from posterior_jax import (
  NFCConfig,
  Observation,
  Sampler,
  baselines,
  metrics,
  nfc,
  operators,
)
from posterior_jax import run as run_sampler
from posterior_jax.base import Denoiser
from posterior_jax.nfc_sampler import (
  Exact,
  Langevin,
  Schedule,
  Sigma,
  Spectrum,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is measured, and who retrieves it.

  Attributes:
    folder: of photographs that the prior did not learn from.
    pictures: of them, the first by name.
    size: their side, averaged down.
    noise_std: of the amplitudes, of pixels in [0, 1].
    restarts: samples of every photograph.
    success: PSNR from which the best of them counts, in dB.
    methods: of METHODS.
    levels: of DAPS, and as many denoiser calls in levels of NFC.
    prior: see `prior_files.load`, or "gaussian".
    dtype: of a network's arithmetic.
    seed: of noise and restarts.
  """

  folder: str
  pictures: int = setting(at_least=1)
  size: int = setting(at_least=16, multiple_of=8)
  noise_std: float = setting(above=0, at_most=1)
  restarts: int = setting(at_least=1, at_most=64)
  success: float
  methods: tuple[str, ...] = setting(some=True)
  levels: int = setting(at_least=2, at_most=1000)
  prior: str
  dtype: str = setting(among=DTYPES)
  seed: int

  def __post_init__(self) -> None:
    super().__post_init__()
    unknown = set(self.methods) - set(METHODS)
    if unknown:
      raise ValueError(
        f"methods must be among {', '.join(METHODS)}; got {min(unknown)!r}"
      )


class Problem(NamedTuple):
  """Photographs, and the prior of their size."""

  settings: Settings
  names: tuple[str, ...]  # of the photographs
  truth: jax.Array  # [N, S, S, 3] in [-1, 1]
  denoise: Denoiser
  spectrum: jax.Array  # [S, S]


def _daps(settings: Settings, spectrum: jax.Array) -> Sampler:
  """As its authors run phase retrieval: steps of 5e-5."""
  config = baselines.DAPSConfig.published(
    levels=settings.levels, step_size=STEP
  )
  return baselines.daps(config)


def _spectrum(settings: Settings, spectrum: jax.Array) -> Sampler:
  """Draws under the spectrum's width about three tangents a level, averaged.

  Two levels of one call where DAPS has one of five. Once no picture, the draws
  of a level do not come back from phases that a single tangent led to.
  """
  config = NFCConfig(
    levels=2 * settings.levels,
    schedule=Schedule(held=0.1),
    width=Spectrum(),
    inner=Exact(tolerance=1e-2, max_iterations=10),
    linearisations=3,
  )
  return nfc(config, spectrum=spectrum)


def _langevin(settings: Settings, spectrum: jax.Array) -> Sampler:
  """DAPS's updates and tau, a call a level, the last levels averaged."""
  config = NFCConfig(
    levels=CALLS * settings.levels,
    schedule=Schedule(held=0.1),
    width=Sigma(),
    inner=Langevin(steps=100 // CALLS, step_size=STEP, decay=0.01),
    inner_noise_std=baselines.DAPSConfig.published().noise_std,
  )
  return nfc(config)


STEP = 5e-5  # of Langevin updates, in pixel^2
CALLS = baselines.DAPSConfig().predictor_steps  # of the denoiser, a level
METHODS: dict[str, Callable[[Settings, jax.Array], Sampler]] = {
  "DAPS": _daps,
  "NFC spectrum": _spectrum,
  "NFC Langevin": _langevin,
}


def prepare(settings: Settings) -> Problem:
  """Reads photographs and prior.

  Raises:
    ValueError: the folder holds fewer pictures, or the prior cannot be read.
  """
  if not settings.folder:
    raise ValueError("folder must hold photographs, as --config.folder=FOLDER")
  files = photographs.files_in(settings.folder)
  if len(files) < settings.pictures:
    raise ValueError(
      f"pictures must be at most {len(files)}, as many as folder holds; got "
      f"{settings.pictures}"
    )
  known = degradations.build_prior(settings.size)
  denoise = known.denoise
  if settings.prior != prior_files.GAUSSIAN:
    denoise = prior_files.load(settings.prior, dtype=settings.dtype).denoise
  found = photographs.from_folder(settings.folder, settings.size)
  names = tuple(found)[: settings.pictures]
  truth = jnp.asarray(np.stack([found[name] for name in names]))
  return Problem(settings, names, truth, denoise, known.spectrum)


def inputs(problem: Problem) -> dict[str, str]:
  """SHA-256 of the photographs and of a prior of one's own."""
  settings = problem.settings
  found = prior_files.digests(settings.prior)
  folder = pathlib.Path(settings.folder)
  return found | writing.digests(
    "photograph", [folder / name for name in problem.names]
  )


def retrieved(problem: Problem, method: str) -> tuple[np.ndarray, np.ndarray]:
  """PSNR and residual of every restart, [restarts, N] each."""
  settings, truth = problem.settings, problem.truth
  operator = operators.phase_retrieval((settings.size, settings.size, 3))
  key_noise, key_run = jax.random.split(jax.random.key(settings.seed))
  clean = operator.forward(truth)
  noise = settings.noise_std * jax.random.normal(key_noise, clean.shape)
  x, info = run_sampler(
    METHODS[method](settings, problem.spectrum),
    problem.denoise,
    Observation(clean + noise, operator, settings.noise_std),
    key_run,
    num_samples=settings.restarts,
  )
  psnr = np.asarray(up_to_a_turn(x, truth))
  return psnr, np.asarray(info.residual[-1])


def up_to_a_turn(x: jax.Array, truth: jax.Array) -> jax.Array:
  """PSNR of images [..., H, W, C], of each or of its turn by 180 degrees."""
  ways = jnp.stack([x, x[..., ::-1, ::-1, :]])
  return metrics.psnr(ways, truth).max(0)


def study(problem: Problem, run: record.Run) -> None:
  """Writes a row for every method and photograph, and prints the summary."""
  settings = problem.settings
  rows: list[dict[str, Any]] = []
  with Progress(len(settings.methods), label="phase retrieval") as tick:
    for method in settings.methods:
      tick(method)
      for name, psnr, residual in zip(
        problem.names, *(a.T for a in retrieved(problem, method)), strict=True
      ):
        row = {
          "method": method,
          "photograph": name,
          "best": psnr.max(),
          "by residual": psnr[residual.argmin()],
          "spread": psnr.std(ddof=1) if len(psnr) > 1 else None,
          "residual": residual.min(),
        }
        run.write("phase_retrieval", row)
        rows.append(row)
        found = " ".join(f"{p:.1f}" for p in psnr)
        print(f"{method}, {name}: {found} dB, residual {residual.min():.2f}")
  print(summary(rows, settings.success).round(2).to_string())


def summary(rows: list[dict[str, Any]], success: float) -> pd.DataFrame:
  """A line a method: median PSNR of the best restart, share of successes."""
  table = pd.DataFrame(rows).set_index("photograph")
  grouped = table.groupby("method")
  return pd.DataFrame(
    {
      "median PSNR of the best [dB]": grouped["best"].median(),
      "chosen by residual [dB]": grouped["by residual"].median(),
      "success rate": grouped["best"].agg(
        lambda best: (best >= success).mean()
      ),
      "spread over restarts [dB]": grouped["spread"].median(),
    }
  )


if __name__ == "__main__":
  runner.main(
    "phase_retrieval", Settings, study, prepare=prepare, inputs=inputs
  )
