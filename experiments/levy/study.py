"""Every sampler on signals whose posteriors Gibbs sampling draws exactly.

  python -m experiments.levy

Settings: `configs/levy.py`. After arXiv 2509.12821: Levy processes of four laws
of increments, seen through four operators; the gap to the least mean squared
error and how often the region of highest posterior density covers the truth.
The denoiser is the exact one, by Gibbs sampling, so that what is wrong is the
sampler's. Rows are written as they come; `--resume` leaves out those that are
there.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import record
from experiments.harness.progress import Progress
from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing
from experiments.harness.speed.compiled import Compiled
from experiments.harness.subjects import samplers
from experiments.levy import problems, report, scores
from experiments.levy.denoiser import Denoiser
from experiments.levy.laws import LAWS
from experiments.levy.problems import OPERATORS, Problem

TABLE = "levy"
EXACT = "Gibbs"  # in the place of a method: exact draws, as many
KEY = ("law", "operator", "method", "setting", "budget")
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the study."""

  seed: int  # of signals, chains and samplers
  laws: tuple[str, ...] = setting(among=LAWS, some=True)
  operators: tuple[str, ...] = setting(among=OPERATORS, some=True)
  # keys of `samplers.METHODS`, () for all
  methods: tuple[str, ...] = setting(among=samplers.METHODS)
  settings: tuple[str, ...]  # of the methods, () for all they have
  # denoiser calls of tuned and calibrated settings, each a budget of its own;
  # published settings run as they are
  evaluations: tuple[int, ...] = setting(at_least=1, some=True)
  samples: int = setting(at_least=10)  # of every posterior
  signals: int = setting(at_least=2)
  length: int = setting(at_least=8)  # points of a signal
  burn_in: int = setting(at_least=0)  # sweeps before those that count
  sweeps: int = setting(at_least=10)  # of the exact posterior's chains
  denoiser_burn_in: int = setting(at_least=0)
  denoiser_sweeps: int = setting(at_least=2)  # of a denoiser's chain

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.sweeps < self.samples:
      raise ValueError(
        f"sweeps must be at least samples, {self.samples}; got {self.sweeps}"
      )


class Trial(NamedTuple):
  """One method on one problem."""

  about: Row  # the first columns of its row, by KEY
  make: Callable[[], Problem]


def levy(settings: Settings, run: record.Run) -> None:
  """Runs what the table lacks, then writes the report."""
  there = {tuple(row[name] for name in KEY) for row in run.rows(TABLE)}
  wanted = [t for t in trials(settings) if tuple(t.about.values()) not in there]
  with Progress(len(wanted), label="levy") as tick:
    for trial in wanted:
      tick(" ".join(map(str, trial.about.values())))
      run.write_once(TABLE, measure(trial, settings), KEY)
  report.write(run, settings)


def trials(settings: Settings) -> Iterator[Trial]:
  """Problem by problem, exact draws first."""
  for law in settings.laws:
    for operator in settings.operators:
      # Made where a trial needs it, once for all methods.
      make = functools.cache(
        functools.partial(
          problems.make,
          law,
          operator,
          signals=settings.signals,
          length=settings.length,
          burn_in=settings.burn_in,
          sweeps=settings.sweeps,
          keep=settings.samples,
          seed=settings.seed,
        )
      )
      everyone = samplers.variants(
        settings.methods, settings.settings, settings.evaluations
      )
      for who in ((EXACT, "", 0), *everyone):
        yield Trial(dict(zip(KEY, (law, operator, *who))), make)


def measure(trial: Trial, settings: Settings) -> Row:
  """The row of a trial, with a note in place of numbers if it cannot run."""
  problem = trial.make()
  names = ("note", "calls", "products", "seconds", *scores.NAMES)
  blank = trial.about | dict.fromkeys(names)
  if trial.about["method"] == EXACT:
    return (
      blank | {"note": ""} | scores.evaluate(problem.exact.samples, problem)
    )
  found, note = timing.attempt(lambda: draw(trial.about, problem, settings))
  if found is None:
    return blank | {"note": note}
  drawn, seconds = found
  samples = np.asarray(drawn.samples, float)[:, :, 0, :, 0]  # [B, N, d]
  if not np.isfinite(samples).all():
    return blank | {"note": "samples are not finite"}
  counted = {"calls": int(drawn.calls), "products": int(drawn.products)}
  about = {"note": "", "seconds": seconds} | counted
  return blank | about | scores.evaluate(samples, problem)


def draw(
  about: Row, problem: Problem, settings: Settings
) -> tuple[samplers.Drawn, float]:
  """Samples [B, N, 1, d, 1] of a method, and the seconds."""
  method = about["method"]
  config = samplers.config(
    method, about["setting"], evaluations=about["budget"] or None
  )
  if hasattr(config, "clip"):  # no signal ends at [-1, 1]
    config = dataclasses.replace(config, clip=False)
  spectrum = jnp.asarray(problem.spectrum, jnp.float32)
  sampler = samplers.build(method, config, spectrum=spectrum)
  denoise = Denoiser(
    problem.law, settings.denoiser_burn_in, settings.denoiser_sweeps
  )
  compiled = Compiled(samplers.draw(sampler, settings.samples))
  key = jax.random.key(settings.seed)
  return compiled(denoise, problem.observation, key), compiled.seconds
