"""Where continuation helps: in closed form, on mixtures and on photographs.

  python -m experiments.continuation

Settings: `configs/continuation.py`. Under a Gaussian prior and circular blur
the expected error of a run is known (`chain`): no sampling, no intervals. Each
hypothesis stands beside its control, the same run without a band.

  few calls     a band lets few levels reach what many reach without one
  wrong kernel  a band by the operator's own uncertainty keeps its error out
  strong noise  a band makes up for a likelihood that trusts noise too much
  tau and step  what the published tau and step size are worth, each alone
  mixtures      weights give modes their shares (`mixtures`)

With `--config.folder=PICTURES` the first three, and wavelets, stand on
photographs as well (`photographs`): samples there, so paired intervals.
"""

import functools
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments.calibration import problems
from experiments.continuation import chain, mixtures, photographs
from experiments.continuation.chain import Law, Problem
from experiments.continuation.photographs import Pictures
from experiments.continuation.settings import (
  APART,
  FEW,
  GAUSSIAN,
  MIXTURES,
  NOISY,
  WRONG,
  Settings,
)
from experiments.data import degradations
from experiments.data import photographs as pictures
from experiments.harness import prior_files, progress, record
from experiments.harness.reporting import report as reports
from experiments.harness.threads import in_threads
from posterior_jax import NFCConfig, operators, priors

Row = dict[str, Any]


def laws(power: np.ndarray) -> dict[str, tuple[Law, Law]]:
  """Width and band of every variant; the first is the control."""
  return {
    "no band": (lambda sigma: sigma**2, lambda sigma: 1.0),
    "hard, S > sigma^2": (
      lambda sigma: sigma**2,
      lambda sigma: (power > sigma**2) * 1.0,
    ),
    "S / (S + sigma^2)": (
      lambda sigma: sigma**2,
      lambda sigma: power / (power + sigma**2),
    ),
    "width of the spectrum": (
      lambda sigma: power * sigma**2 / (power + sigma**2),
      lambda sigma: 1.0,
    ),
  }


def kernel_of(name: str, size: int) -> np.ndarray:
  """A kernel by its name in KERNELS, [h, w]."""
  shape = (size, size, 1)
  if name == GAUSSIAN:
    return np.asarray(operators.gaussian_blur(shape).kernel, np.float64)
  return np.asarray(operators.motion_blur(shape, name).kernel, np.float64)


def rows(settings: Settings) -> Iterator[Row]:
  """A row for every hypothesis, kernel, variant and number of levels."""
  size = settings.size
  power = np.asarray(priors.power_law_spectrum(size, size), np.float64)
  for name in settings.kernels:
    kernel = kernel_of(name, size)
    for found in (
      _few_calls(settings, power, kernel),
      # A turn leaves a round kernel as it is.
      () if name == GAUSSIAN else _wrong_kernel(settings, power, kernel),
      _strong_noise(settings, power, kernel),
      _tau_and_step(settings, power, kernel),
    ):
      for row in found:
        yield {"hypothesis": row.pop("hypothesis"), "kernel": name} | row


def _few_calls(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  gain, noise = chain.transfer(kernel, len(power)), settings.noise_std
  problem = Problem(power, gain, gain, noise, noise)
  for variant, (width, band) in laws(power).items():
    yield from _by_levels(settings, FEW, variant, problem, width, band)


def _wrong_kernel(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  noise = settings.noise_std
  gain = chain.transfer(kernel, len(power))
  width = laws(power)["width of the spectrum"][0]
  told = {"turned": chain.turned(kernel, settings.turn), "right": kernel}
  for words, assumed in told.items():
    problem = Problem(
      power, gain, chain.transfer(assumed, len(power)), noise, noise
    )
    careful = chain.uncertainty_band(power, assumed, noise)
    bands = {"no band": np.ones_like(power), "uncertainty": careful}
    for name, band in bands.items():
      law = functools.partial(_always, band)
      yield from _by_levels(
        settings, WRONG, f"{words}, {name}", problem, width, law
      )


def _always(value: np.ndarray, sigma: float) -> np.ndarray:
  del sigma
  return value


def _strong_noise(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  gain, noise = chain.transfer(kernel, len(power)), settings.strong_noise_std
  for share, (variant, (width, band)) in itertools.product(
    settings.tau_shares, laws(power).items()
  ):
    problem = Problem(power, gain, gain, noise, share * noise)
    variant = f"tau {share:g} of the noise, {variant}"
    yield from _by_levels(settings, NOISY, variant, problem, width, band)


def _tau_and_step(
  settings: Settings, power: np.ndarray, kernel: np.ndarray
) -> Iterator[Row]:
  """The published tau and step, and each of them alone as an exact one."""
  gain, noise = chain.transfer(kernel, len(power)), settings.noise_std
  problem = Problem(power, gain, gain, noise, noise)
  paper = NFCConfig.paper(
    levels=settings.published_levels, band=None, fusion=None
  )
  exact = {"inner_noise_std": None, "halved_misfit": True}
  steps = {"step that decays": 0.01, "step that stays": 1.0}
  for words, decay in steps.items():
    # Half the largest stable step is 5e-5 at the published tau, 2.5e-3 at s.
    for variant, tau, step in (
      ("tau as published", {}, 5e-5),
      ("tau the noise, step as published", exact, 5e-5),
      ("tau the noise, step 50 times as large", exact, 2.5e-3),
    ):
      inner = {"step_size": step, "decay": decay}
      yield {
        "hypothesis": APART,
        "variant": f"{variant}, {words}",
        "levels": paper.levels,
        "psnr": chain.published_psnr(
          problem, paper.replace(inner=inner, **tau)
        ),
      }


def _by_levels(
  settings: Settings,
  hypothesis: str,
  variant: str,
  problem: Problem,
  width: Law,
  band: Law,
) -> Iterator[Row]:
  for levels in settings.levels:
    psnr = chain.expected_psnr(problem, levels, width, band)
    about = {"hypothesis": hypothesis, "variant": variant}
    yield about | {"levels": levels, "psnr": psnr}


def mixture_rows(settings: Settings) -> Iterator[Row]:
  """Errors of the modes' shares: by measurements, levels, with and without."""
  for measured in (1, 2, 4) if settings.mixtures else ():
    made = [
      problems.mixture(8, measured, number, settings.seed)
      for number in range(settings.mixtures)
    ]
    for levels, weighted in itertools.product(
      settings.mixture_levels, (False, True)
    ):
      for number, problem in enumerate(made):
        yield {
          "measured": measured,
          "levels": levels,
          "variant": "weights" if weighted else "no weights",
          "problem": number,
          "error": mixtures.mode_share_error(
            problem,
            jax.random.key(settings.seed + number),
            levels=levels,
            count=settings.particles,
            weighted=weighted,
          ),
        }


def read(settings: Settings) -> Pictures:
  """Photographs and prior; ValueError where they are not there."""
  files = pictures.files_in(settings.folder)[: settings.pictures]
  size, denoise = settings.crop, prior_files.load(settings.prior).denoise
  return Pictures(
    [file.name for file in files],
    np.concatenate([pictures.crops(file, size, 1) for file in files]),
    denoise,
    degradations.build_prior(size).spectrum,
  )


def photograph_rows(settings: Settings, given: Pictures) -> Iterator[Row]:
  """A row for every case and picture, as they are done."""
  groups = photographs.by_program(photographs.cases(settings))
  turn = threading.Lock()

  def one(group: list[photographs.Case]) -> list[Row]:
    return photographs.restored(group, given, settings.seed, turn)

  with progress.Progress(len(groups), label="photographs") as tick:
    for found in in_threads(one, groups, settings.workers):
      tick(f"{found[0]['hypothesis']}: {found[0]['variant']}")
      yield from found


def prepare(settings: Settings) -> tuple[Settings, Pictures | None]:
  """What the study is called with."""
  return settings, read(settings) if settings.folder else None


def continuation(
  given: tuple[Settings, Pictures | None], run: record.Run
) -> None:
  """Writes the rows and a report with a table for every hypothesis."""
  settings, photos = given
  for row in rows(settings):
    run.write("continuation", row)
  for row in mixture_rows(settings):
    run.write("mixtures", row)
  for row in photograph_rows(settings, photos) if photos else ():
    run.write("photographs", row)
  report = reports.Report("Where continuation helps", run.origin())
  tables = _closed_form_tables(settings, run.frame("continuation"))
  if settings.mixtures:
    tables.append(_mixture_table(settings, run.frame("mixtures")))
  if photos:
    tables += _photograph_tables(settings, run.frame("photographs"))
  for name, title, table, about in tables:
    report.table(
      title,
      table,
      digits=dict.fromkeys(table.columns, 3 if name == MIXTURES else 1),
      measured_on=about,
      name=name.replace(" ", "_"),
    )
    print(table.round(3).to_string())
  path = report.write(run.folder / "report.html")
  print(f"report: {reports.shown(path)}")


Named = tuple[str, str, pd.DataFrame, str]  # name, title, table, measured on


def _closed_form_tables(settings: Settings, found: pd.DataFrame) -> list[Named]:
  tables = []
  for hypothesis in (FEW, WRONG, NOISY, APART):
    own = found[found.hypothesis == hypothesis]
    if len(own):
      table = own.pivot_table(
        "psnr", ["kernel", "variant"], "levels", sort=False
      )
      table.columns = [f"{levels} levels" for levels in table.columns]
      about = (
        f"Gaussian prior, {settings.size} x {settings.size}, circular blur, "
        "the minimiser of every level; closed form."
      )
      title = f"{hypothesis}: expected PSNR [dB]"
      tables.append((hypothesis, title, table, about))
  return tables


def _mixture_table(settings: Settings, found: pd.DataFrame) -> Named:
  table = found.pivot_table(
    "error", ["measured", "variant"], "levels", aggfunc="median", sort=False
  )
  table.columns = [f"{levels} levels" for levels in table.columns]
  about = (
    f"{settings.mixtures} mixtures of 25 modes in 8 dimensions each, "
    f"{settings.particles} particles."
  )
  title = "Modes: total variation of their shares, median"
  return MIXTURES, title, table, about


def _photograph_tables(settings: Settings, found: pd.DataFrame) -> list[Named]:
  tables = []
  for hypothesis, own in found.groupby("hypothesis", sort=False):
    table = own.pivot_table("psnr", "variant", "kernel", sort=False)
    about = f"{settings.pictures} photographs, {settings.crop} pixels a side."
    title = f"{hypothesis}, photographs: PSNR [dB]"
    tables.append((f"{hypothesis}_photographs", title, table, about))
  return tables
