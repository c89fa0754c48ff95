"""Every sampler against posteriors that are known exactly.

  python -m experiments.calibration

Settings: `configs/calibration.py`. A Gaussian prior with an exact denoiser,
seen through four operators, the spectrum that NFC's width takes right and off
by factors; and random mixtures of 25 modes. Methods as published, tuned and
calibrated, by how often they call the denoiser. Rows are written as they come;
`--resume` leaves out those that are there.
"""

import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.calibration import problems as calibration_problems
from experiments.calibration import report
from experiments.calibration import rows as calibration_rows
from experiments.calibration.problems import (
  MIXTURE_SHAPES,
  TASKS,
  Gaussian,
  Mixture,
)
from experiments.calibration.rows import Who
from experiments.harness import record, samplers, timing
from experiments.harness import report as reports
from experiments.harness.progress import Progress
from experiments.harness.samplers import CALIBRATED, PUBLISHED
from posterior_jax import NFCConfig

GAUSSIAN, MIXTURE = "gaussian", "mixture"


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the study.

  Attributes:
    seed: of problems and samplers.
    methods: keys of `samplers.METHODS`, () for all.
    settings: of the methods, () for all they have.
    evaluations: denoiser calls of tuned and calibrated settings, each a budget
      of its own; published settings run as they are.
    samples: of every posterior, at least 20.
    directions: of the sliced Wasserstein distance.
    tasks: keys of `calibration_problems.TASKS`.
    size: side of the Gaussian prior's images, divisible by 4.
    factors: of the spectrum that NFC is given.
    dimensions: (D, m) of the mixtures, D in 8, 80 and 800.
    problems: random mixtures of each.
    workers: programs compiled at a time.
  """

  seed: int
  methods: tuple[str, ...]
  settings: tuple[str, ...]
  evaluations: tuple[int, ...]
  samples: int
  directions: int
  tasks: tuple[str, ...]
  size: int
  factors: tuple[float, ...]
  dimensions: tuple[tuple[int, int], ...]
  problems: int
  workers: int

  def __post_init__(self) -> None:
    sizes = tuple(size for size, _ in self.dimensions)
    for name, found, known in (
      ("methods", self.methods, samplers.METHODS),
      ("tasks", self.tasks, TASKS),
      ("dimensions", sizes, MIXTURE_SHAPES),
    ):
      for value in found:
        if value not in known:
          raise ValueError(
            f"{name} must be among {', '.join(map(str, known))}; got {value!r}"
          )
    if not self.evaluations or min(self.evaluations) < 1:
      raise ValueError(
        f"evaluations must hold positive numbers, got {self.evaluations}"
      )
    if not self.factors or min(self.factors) <= 0:
      raise ValueError(
        f"factors must hold positive numbers, got {self.factors}"
      )
    if self.problems < 1 or self.workers < 1:
      raise ValueError(
        "problems and workers must be at least 1, got "
        f"{self.problems} and {self.workers}"
      )
    if self.samples < 20:
      raise ValueError(f"samples must be at least 20, got {self.samples}")
    if self.size < 12 or self.size % 4:
      raise ValueError(
        f"size must be at least 12 and divisible by 4, got {self.size}"
      )


class Job(NamedTuple):
  """One method on one kind of problem.

  Attributes:
    table: GAUSSIAN or MIXTURE.
    about: the problem's columns of every row.
    who: the method.
    make: the problems.
    changes: of the method's settings.
  """

  table: str
  about: dict[str, Any]
  who: Who
  make: Callable[[], Sequence[Gaussian] | Sequence[Mixture]]
  changes: tuple[tuple[str, Any], ...] = ()

  def __str__(self) -> str:
    return " ".join(map(str, (*self.about.values(), *self.who)))


def jobs(settings: Settings) -> list[Job]:
  """Everything that is measured, method by method, Gaussian problems first."""
  gaussian = {
    task: functools.cache(functools.partial(_gaussians, task, settings))
    for task in settings.tasks
  }
  mixture = {
    dimension: functools.cache(
      functools.partial(_mixtures, *dimension, settings)
    )
    for dimension in settings.dimensions
  }
  found = [
    Job(GAUSSIAN, {"task": task}, who, make)
    for who in everyone(settings, settings.factors)
    for task, make in gaussian.items()
  ]
  for who in everyone(settings, (1.0,)):
    changes = _without_spectrum(who) if who.method == "NFC" else ()
    for (size, measured), make in mixture.items():
      about = {"size": size, "measured": measured}
      found.append(Job(MIXTURE, about, who, make, changes))
  return found


def _without_spectrum(who: Who) -> tuple[tuple[str, Any], ...]:
  """What makes of `calibrated()` the same by the Jacobian: for mixtures."""
  if who.setting != CALIBRATED:
    return ()
  plain = dataclasses.asdict(NFCConfig.calibrated())
  own = dataclasses.asdict(NFCConfig.calibrated(tie="jacobian"))
  return tuple((k, value) for k, value in own.items() if value != plain[k])


def _gaussians(task: str, settings: Settings) -> list[Gaussian]:
  return [calibration_problems.gaussian(task, settings.size, settings.seed)]


def _mixtures(size: int, measured: int, settings: Settings) -> list[Mixture]:
  return [
    calibration_problems.mixture(size, measured, number, settings.seed)
    for number in range(settings.problems)
  ]


def everyone(settings: Settings, factors: tuple[float, ...]) -> Iterator[Who]:
  """Published settings as they are, the others at every budget."""
  for method in settings.methods or samplers.METHODS:
    for setting in samplers.METHODS[method].settings:
      if settings.settings and setting not in settings.settings:
        continue
      published = setting == PUBLISHED
      for budget in (0,) if published else settings.evaluations:
        for factor in factors if setting == CALIBRATED else (1.0,):
          yield Who(method, setting, factor, budget)


_JUDGES: dict[str, Callable[..., dict[str, Any]]] = {
  GAUSSIAN: calibration_rows.judge_gaussian,
  MIXTURE: calibration_rows.judge_mixture,
}


def measure(
  job: Job, settings: Settings, lock: threading.Lock
) -> list[dict[str, Any]]:
  """A row for every problem of a job, which are sampled in one batch.

  Args:
    job: what to sample, and how.
    settings: of the study.
    lock: held while the device works, so that times are its own.

  Returns:
    The rows; one with a note if the method cannot be run.
  """
  blank = job.about | job.who._asdict() | {"samples": settings.samples}
  numbers = calibration_rows.NUMBERS[job.table]
  for name in ("number", "note", "calls", "products", "seconds", *numbers):
    blank[name] = None
  found, note = timing.attempt(lambda: _draw(job, settings, lock))
  if found is None:
    return [blank | {"number": 0, "note": note}]
  rows = []
  for number, problem in enumerate(job.make()):
    samples, calls, products = (part[number] for part in found[0])
    finite = bool(np.isfinite(samples).all())
    about = {
      "number": number,
      "note": "" if finite else "samples are not finite",
      "calls": int(calls),
      "products": int(products),
      "seconds": found[1],
    }
    key = jax.random.fold_in(jax.random.key(settings.seed + 1), number)
    with lock:
      judged = _JUDGES[job.table](samples, problem, key, settings.directions)
    rows.append(blank | about | judged)
  return rows


def _draw(
  job: Job, settings: Settings, lock: threading.Lock
) -> tuple[tuple[jax.Array, ...], float]:
  """Samples [N, B, 1, H, W, 1], calls and products [N]; and the seconds."""
  problems = job.make()
  first = problems[0]
  config = samplers.config(
    job.who.method,
    job.who.setting,
    task=first.task if isinstance(first, Gaussian) else None,
    evaluations=job.who.budget or None,
    **dict(job.changes),
  )
  if hasattr(config, "clip"):  # neither prior ends at [-1, 1]
    config = dataclasses.replace(config, clip=False)
  spectrum = None
  if isinstance(first, Gaussian):
    spectrum = job.who.factor * first.prior.spectrum
  sampler = samplers.build(job.who.method, config, spectrum=spectrum)

  def draw(denoise: Any, observation: Any, key: jax.Array) -> tuple:
    samples, info = posterior_jax.run(
      sampler, denoise, observation, key, num_samples=settings.samples
    )
    return samples, jnp.sum(info.calls), jnp.sum(info.products)

  each = [(problem.prior.denoise, problem.observation) for problem in problems]
  denoise, observation = jax.tree.map(lambda *a: jnp.stack(a), *each)
  keys = jax.random.split(jax.random.key(settings.seed), len(problems))
  arguments = denoise, observation, keys
  compiled = jax.jit(jax.vmap(draw)).lower(*arguments).compile()
  with lock:
    start = time.monotonic()
    found = jax.block_until_ready(compiled(*arguments))
    return found, time.monotonic() - start


def calibrate(settings: Settings, run: record.Run) -> None:
  """Runs what the tables lack, then writes the report."""
  lock = threading.Lock()
  wanted = [job for job in jobs(settings) if not _is_there(job, run)]
  with (
    Progress(len(wanted), label="calibration") as tick,
    concurrent.futures.ThreadPoolExecutor(settings.workers) as pool,
  ):

    def one(job: Job) -> tuple[Job, list[dict[str, Any]]]:
      tick(str(job))
      return job, measure(job, settings, lock)

    futures = [pool.submit(one, job) for job in wanted]
    try:
      for future in concurrent.futures.as_completed(futures):
        job, rows = future.result()
        for row in rows:
          run.write(job.table, row)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
  path = report.write(run, settings)
  print(f"report: {reports.shown(path)}")


def _is_there(job: Job, run: record.Run) -> bool:
  about = job.about | job.who._asdict()
  rows = [
    row
    for row in run.rows(job.table)
    if all(row[name] == value for name, value in about.items())
  ]
  failed = any(row["calls"] is None for row in rows)
  return failed or len(rows) >= len(job.make())
