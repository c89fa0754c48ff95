"""Restoring photographs with one sampler at a time, and scoring the result.

A `Program` is compiled once and used for all its degradations: kernels, masks,
measurements and noise levels are arguments. Several programs compile at a
time, on the host; a device runs one at a time.
"""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from experiments.data import degradations
from experiments.data.degradations import Degradation
from experiments.harness.processes.threads import in_threads
from experiments.harness.speed import timing
from experiments.harness.speed.compiled import Compiled
from experiments.harness.subjects import samplers, scores
from experiments.restoration.setup import Setup
from posterior_jax import Observation, operators

Row = dict[str, Any]
TABLE = "restoration"
METHODS, ABLATION, ROBUSTNESS = "methods", "ablation", "robustness"
AS_MEASURED = ""
HALF_NOISE, TWICE_NOISE = "half the noise", "twice the noise"
TURNED = {f"kernel turned by {degrees} degrees": degrees for degrees in (5, 15)}
DIVERGED = "samples are not finite"
ASSUMPTIONS = (AS_MEASURED, HALF_NOISE, TWICE_NOISE, *TURNED)
# What tells the rows of programs apart; each has one for every photograph.
ABOUT = (
  *("part", "task", "kernel", "assumed", "method", "setting", "variant"),
  *("budget", "samples"),
)

KEY = (*ABOUT, "photograph")


class Program(NamedTuple):
  """One sampler for one task."""

  part: str  # of the study it belongs to
  method: str  # a key of `samplers.METHODS`
  setting: str  # of the method
  # of one task, restored one after the other
  degradations: tuple[Degradation, ...]
  budget: int = 0  # denoiser calls it may spend; 0: as the setting does
  variant: str = ""  # names the changes, "" without any
  # of the setting's fields, (name, value) each
  changes: tuple[tuple[str, Any], ...] = ()
  # what the sampler is told, of ASSUMPTIONS
  assumed: tuple[str, ...] = (AS_MEASURED,)
  samples: int = 1  # drawn of every observation

  def __str__(self) -> str:
    task = self.degradations[0].task
    words = (task, self.method, self.setting, self.variant)
    return f"{self.part}: {' '.join(filter(None, words))}, {self.budget}"

  def runs(self) -> list[tuple[Degradation, str]]:
    """What it does one after the other: a degradation, told what."""
    return list(itertools.product(self.degradations, self.assumed))

  def row(self, degradation: Degradation, assumed: str, **found: Any) -> Row:
    """A row of the table, None in the columns that are not given.

    Columns: those of ABOUT; `photograph`; denoiser `calls` and `products` with
    its Jacobian (VJPs) for every sample; those of `scores.evaluate`; `seconds`
    of all photographs and samples, compiled; `compile_seconds`, others
    compiling beside it; `note`, why numbers are missing or not finite.
    """
    blank: Row = {
      "part": self.part,
      "task": degradation.task,
      "kernel": degradation.kernel,
      "assumed": assumed,
      "method": self.method,
      "setting": self.setting,
      "variant": self.variant,
      "budget": self.budget,
      "photograph": None,
      "samples": self.samples,
      **dict.fromkeys(("calls", "products", *scores.NAMES)),
      **dict.fromkeys(("seconds", "compile_seconds")),
      "note": "",
    }
    return blank | found


# given the samples [m, H, W, 3] of a degradation's first photograph
Keep = Callable[[Program, Degradation, np.ndarray], None]


def run_all(
  programs: Sequence[Program],  # to run
  setup: Setup,  # what they share
  *,
  workers: int,  # threads; no more devices are used than there are
  keep: Keep | None = None,  # takes samples to be shown
  # called before each program, from several threads
  tick: Callable[[str], None] = lambda words: None,
) -> Iterator[list[Row]]:
  """Runs programs on all devices, `workers` compiling at a time.

  Returns:
    The rows of one program after the other, as they are done; of one that
    failed rows with a note.
  """
  places = [
    (device, setup.on(device), threading.Lock())
    for device in jax.local_devices()[:workers]
  ]

  def one(item: tuple[int, Program]) -> list[Row]:
    number, program = item
    device, placed, turn = places[number % len(places)]
    tick(str(program))
    with jax.default_device(device):
      found, note = timing.attempt(lambda: run(program, placed, turn, keep))
    if found is None:
      return [
        program.row(*each, photograph=name, note=note)
        for each in program.runs()
        for name in setup.names
      ]
    return found

  return in_threads(one, enumerate(programs), workers)


def run(
  program: Program,  # what to run
  setup: Setup,  # on the device that runs it
  turn: AbstractContextManager[Any],  # held while that works
  keep: Keep | None = None,  # takes samples to be shown
) -> list[Row]:
  """Compiles a program and runs it; a row for every photograph."""
  config = samplers.config(
    program.method,
    program.setting,
    task=program.degradations[0].task,
    evaluations=program.budget or None,
    **dict(program.changes),
  )
  sampler = samplers.build(program.method, config, spectrum=setup.spectrum)
  draw = Compiled(samplers.draw(sampler, program.samples), turn)
  rows = []
  for degradation, assumed in program.runs():
    problem = degradations.measure(
      degradation, setup.truth, setup.noise_std, setup.seed
    )
    told = assume(problem.observation, assumed)
    drawn = draw(setup.denoise, told, jax.random.key(setup.seed))
    if keep is not None and assumed == AS_MEASURED:
      keep(program, degradation, np.asarray(drawn.samples[:, 0]))
    found = scores.evaluate(
      drawn.samples, problem.observation, problem.truth, setup.lpips
    )
    for i, (name, numbers) in enumerate(zip(setup.names, found)):
      rows.append(
        program.row(
          degradation,
          assumed,
          photograph=name,
          calls=int(drawn.calls),
          products=int(drawn.products),
          seconds=draw.seconds,
          compile_seconds=draw.compile_seconds,
          note="" if np.isfinite(drawn.samples[:, i]).all() else DIVERGED,
          **numbers,
        )
      )
  return rows


def assume(observation: Observation, assumed: str) -> Observation:
  """The observation as a sampler is told it was made.

  Args:
    observation: as it is.
    assumed: one of ASSUMPTIONS; the kernel is turned about its middle.
  """
  if assumed in (HALF_NOISE, TWICE_NOISE):
    factor = 0.5 if assumed == HALF_NOISE else 2.0
    return dataclasses.replace(
      observation, noise_std=factor * observation.noise_std
    )
  if assumed in TURNED:
    operator = observation.operator
    assert isinstance(operator, operators.Blur)
    kernel = scipy.ndimage.rotate(
      np.asarray(operator.kernel), TURNED[assumed], reshape=False, order=1
    )
    kernel = jnp.asarray(kernel / kernel.sum(), jnp.float32)
    return dataclasses.replace(
      observation, operator=dataclasses.replace(operator, kernel=kernel)
    )
  return observation


def remaining(
  programs: Sequence[Program], rows: Sequence[Mapping[str, Any]], count: int
) -> list[Program]:
  """The programs that a table lacks: those without all rows of all runs.

  Args:
    programs: wanted.
    rows: of the table so far.
    count: photographs, a row each.
  """

  def key(row: Mapping[str, Any]) -> tuple:
    return tuple(row[name] for name in ABOUT)

  there = collections.Counter(map(key, rows))
  return [
    program
    for program in programs
    if any(there[key(program.row(*each))] < count for each in program.runs())
  ]
