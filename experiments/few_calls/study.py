"""`NFCConfig.fast()` beside the best baselines, at few network evaluations.

  python -m experiments.few_calls --config.folder=PICTURES

Settings: `configs/few_calls.py`. Every baseline is tuned for every task and
number of evaluations by `search`, on crops of `photographs.TUNING`, which
neither the prior learned from nor a report restores; `fast()` is one setting
for all tasks. Forms that `fast()` could have (`variants`) are tuned on the same
crops, once over all tasks and once for each. Pictures are cut from the middle,
not averaged down.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import posterior_jax as pj
from experiments.data import degradations, photographs
from experiments.data.degradations import Degradation, Problem
from experiments.few_calls import variants
from experiments.few_calls.contenders import BASELINES, DPIR, Contender, scanned
from experiments.few_calls.search import Found, Point, search
from experiments.few_calls.tuned import start as start_of
from experiments.harness import paired, prior_files, progress, record
from experiments.harness.settings import Checked, setting
from experiments.restoration import setup
from posterior_jax.base import Denoiser

TABLE, TRIALS = "few_calls", "trials"
FAST, SLOW = "NFC, fast()", "NFC, restoration()"
ALL = "all tasks"
Row = dict[str, Any]
__all__ = ["DPIR", "FAST", "Settings", "Task", "compare", "differences"]


def _as_it_is(evaluations: int) -> Any:
  def run(operands, denoise, observation, key, spectrum):
    del operands
    config = pj.NFCConfig.fast(levels=evaluations)
    sampler = pj.nfc(config, spectrum=spectrum)
    return scanned(sampler, denoise, observation, key)

  return run


def _restoration(evaluations: int) -> Any:
  del evaluations

  def run(operands, denoise, observation, key, spectrum):
    del operands, spectrum
    sampler = pj.nfc(pj.NFCConfig.restoration(levels=100))
    return scanned(sampler, denoise, observation, key)

  return run


def _fixed(restore: Any, *, shared: bool = False) -> Contender:
  return Contender(lambda _: (), lambda *_: {}, restore, shared=shared)


# In the order of the work. The slow one, about 500 evaluations, says how much
# there is to gain.
METHODS: dict[str, Contender] = {
  FAST: _fixed(_as_it_is),
  **variants.VARIANTS,
  **BASELINES,
  SLOW: _fixed(_restoration, shared=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the comparison.

  Attributes:
    seed: of noise and samplers.
    folder: of the pictures.
    pictures: how many, the first by name.
    size: side of the crops.
    noise_std: of the measurements.
    prior: a file of `prior_files.load`, "" for the shipped one.
    tasks: of `degradations.FROZEN`.
    calls: network evaluations of a run, VJPs counted; a method whose level
      takes more is left out there.
    methods: of METHODS, () for all.
    crops: of every photograph that is tuned on.
    most: points that a search tries.
    workers: programs compiled at a time.
  """

  seed: int
  folder: str
  pictures: int = setting(at_least=2)
  size: int = setting(at_least=32, multiple_of=8)
  noise_std: float = setting(above=0)
  prior: str
  tasks: tuple[str, ...] = setting(some=True)
  calls: tuple[int, ...] = setting(at_least=2, at_most=variants.MOST, some=True)
  methods: tuple[str, ...] = setting(among=METHODS)
  crops: int = setting(at_least=1)
  most: int = setting(at_least=1)
  workers: int = setting(at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    setup.degradations_named(self.tasks)
    for method in self.methods:
      each = METHODS[method].each
      if each > max(self.calls):
        raise ValueError(
          f"calls must reach {each}, which a level of {method} takes, got "
          f"{self.calls}"
        )


class Task(NamedTuple):
  """The settings and what they name."""

  settings: Settings
  denoise: Denoiser
  spectrum: jax.Array  # [size, size]
  truths: dict[str, np.ndarray]  # by name, [size, size, 3] in [-1, 1]
  tuning: np.ndarray  # [N, size, size, 3]


def prepare(settings: Settings) -> Task:
  """Reads pictures and prior; ValueError where they are not there."""
  files = photographs.files_in(settings.folder)[: settings.pictures]
  return Task(
    settings,
    prior_files.load(settings.prior, dtype="float32").denoise,
    degradations.build_prior(settings.size).spectrum,
    {file.name: photographs.crops(file, settings.size, 1)[0] for file in files},
    np.concatenate(
      [
        photographs.crops(photographs.path(name), settings.size, settings.crops)
        for name in photographs.TUNING
      ]
    ),
  )


class Problems(NamedTuple):
  """One degradation of the pictures that are tuned on and reported on."""

  tuning: Problem
  report: list[Problem]  # batches as large, the last filled up


class Programs:
  """The compiled programs of all methods, made in threads beforehand."""

  def __init__(self, task: Task):
    """Begins to compile; batches are of as many pictures as are tuned on."""
    self._task = task
    self._pool = concurrent.futures.ThreadPoolExecutor(task.settings.workers)
    self._made: dict[Any, concurrent.futures.Future] = {}

  def begin(self, method: str, problem: Problem, evaluations: int) -> None:
    """Compiles one, unless it is under way."""
    key = self._key(method, problem, evaluations)
    if key not in self._made:
      self._made[key] = self._pool.submit(
        self._compile, method, problem, evaluations
      )

  def run(
    self, method: str, problem: Problem, evaluations: int, point: Point
  ) -> np.ndarray:
    """PSNR of every picture, [N]; NaN where the point is no setting."""
    contender = METHODS[method]
    try:
      operands = contender.operands(evaluations, point)
    except ValueError:  # as a first level below the last
      return np.full(len(problem.truth), math.nan)
    self.begin(method, problem, evaluations)
    program = self._made[self._key(method, problem, evaluations)].result()
    x = program(operands, *self._rest(problem))
    return np.asarray(pj.metrics.psnr(x, problem.truth))

  def reported(
    self, method: str, problems: Problems, evaluations: int, point: Point
  ) -> dict[str, float]:
    """PSNR by picture of those that are reported on."""
    found = [
      self.run(method, problem, evaluations, point)
      for problem in problems.report
    ]
    # The last batch is filled up: what it holds beyond the names is left out.
    return dict(zip(self._task.truths, np.concatenate(found).tolist()))

  def _key(self, method: str, problem: Problem, evaluations: int) -> Any:
    shared = METHODS[method].shared
    return method, problem.name, 0 if shared else evaluations

  def _rest(self, problem: Problem) -> tuple[Any, ...]:
    task = self._task
    key = jax.random.key(task.settings.seed)
    return task.denoise, problem.observation, key, task.spectrum

  def _compile(self, method: str, problem: Problem, evaluations: int) -> Any:
    contender = METHODS[method]
    point = {knob.name: knob.start for knob in contender.knobs(evaluations)}
    operands = contender.operands(evaluations, point)
    restore = jax.jit(contender.restore(evaluations))
    return restore.lower(operands, *self._rest(problem)).compile()


def measured(task: Task, degradation: Degradation) -> Problems:
  """All pictures under a degradation."""
  settings, batch = task.settings, len(task.tuning)
  truths = np.stack([*task.truths.values()])
  rooms = math.ceil(len(truths) / batch)
  truths = np.resize(truths, (rooms * batch, *truths.shape[1:]))

  def measure(images: np.ndarray, seed: int) -> Problem:
    return degradations.measure(
      degradation, jnp.asarray(images), settings.noise_std, seed
    )

  seed = settings.seed
  return Problems(
    measure(task.tuning, seed),
    [
      measure(part, seed + 1 + i)
      for i, part in enumerate(np.split(truths, rooms))
    ],
  )


def compare(task: Task, run: record.Run) -> None:
  """Tunes, writes the rows as they come, prints the paired differences."""
  settings = task.settings
  problems = {
    degradation: measured(task, degradation)
    for degradation in setup.degradations_named(settings.tasks)
  }
  programs = Programs(task)
  wanted = runs(settings)
  for method, calls in wanted:
    for problem in problems.values():
      if has_form(method, problem.tuning):
        programs.begin(method, problem.tuning, calls)
  with progress.Progress(len(wanted), label=TABLE) as tick:
    for method, calls in wanted:
      tick(f"{method}, {calls} evaluations")
      for name, row in compared(
        programs, problems, method, calls, settings.most
      ):
        run.write(name, row)
  rows = run.frame(TABLE)
  if FAST in set(rows["method"]):
    print(differences(rows).round(3).to_string(), flush=True)


def runs(settings: Settings) -> list[tuple[str, int]]:
  """Methods and evaluations, without those that a first level exceeds."""
  return [
    (method, calls)
    for method in settings.methods or METHODS
    for calls in (settings.calls[:1] if method == SLOW else settings.calls)
    if METHODS[method].each <= calls
  ]


def has_form(method: str, problem: Problem) -> bool:
  """Whether a method has a form for the operator: DDRM needs an SVD."""
  try:
    if method == "DDRM":
      problem.observation.operator.svd()  # type: ignore[attr-defined]
  except ValueError:
    return False
  return True


def compared(
  programs: Programs,
  problems: Mapping[Degradation, Problems],
  method: str,
  calls: int,
  most: int,
) -> Iterator[tuple[str, Row]]:
  """Rows of one method: trials, and a PSNR for every picture and task.

  Baselines are tuned for every task alone. Others are so too, under a name that
  says it, after they were tuned over all tasks.

  Args:
    programs: of all methods.
    problems: by degradation.
    method: a key of METHODS.
    calls: network evaluations.
    most: points that a search tries.

  Returns:
    (table, row) pairs.
  """
  cases = {
    str(degradation): own
    for degradation, own in problems.items()
    if has_form(method, own.tuning)
  }

  @functools.cache
  def tried(task: str, point: tuple[tuple[str, float], ...]) -> float:
    scores = programs.run(method, cases[task].tuning, calls, dict(point))
    return float(scores.mean())

  def tuned(tasks: Sequence[str], start: Point) -> Found:
    knobs = [
      knob._replace(start=start.get(knob.name, knob.start))
      for knob in METHODS[method].knobs(calls)
    ]

    def score(point: Point) -> float:
      return float(np.mean([tried(t, (*point.items(),)) for t in tasks]))

    return search(knobs, score, most=most)

  def rows(
    words: str, tasks: Sequence[str], found: Found
  ) -> Iterator[tuple[str, Row]]:
    about: Row = {"method": words, "calls": calls}
    where = tasks[0] if len(tasks) == 1 else ALL
    for point, psnr in found.trials:
      yield TRIALS, about | {"task": where, "psnr": psnr, "point": shown(point)}
    interior = "inside" if found.interior else "at an edge"
    print(
      f"{words}, {calls} evaluations, {where}: {found.score:.3f} dB, "
      f"{interior} of {len(found.trials)}: {shown(found.point)}",
      flush=True,
    )
    for task in tasks:
      for name, psnr in programs.reported(
        method, cases[task], calls, found.point
      ).items():
        row = about | {"task": task, "picture": name, "psnr": psnr}
        yield TABLE, row | {"point": shown(found.point)}

  start: Point = {}
  if method not in BASELINES:
    found = tuned([*cases], start)
    yield from rows(method, [*cases], found)
    start = found.point
  if METHODS[method].knobs(calls):
    words = method if method in BASELINES else f"{method}, by task"
    for task in cases:
      known = start_of(method, calls, task) or start
      yield from rows(words, [task], tuned([task], known))


def shown(point: Point) -> str:
  """A point in words."""
  return ", ".join(f"{name}={value:.6g}" for name, value in point.items())


def differences(rows: pd.DataFrame, method: str = FAST) -> pd.DataFrame:
  """fast() less every baseline, paired by picture: mean and 95 % interval.

  Args:
    rows: of the table.
    method: in the place of fast().

  Returns:
    By task, calls and baseline: its PSNR, that of fast(), the mean difference,
    half the width of its interval, the number of pictures, and the ends of the
    interval by 10,000 resamples of the pictures (percentile bootstrap).
  """
  case = ["task", "calls"]
  wide = rows.pivot_table("psnr", [*case, "picture"], "method", sort=False)
  found = []
  for about, own in wide.groupby(case, sort=False):
    for baseline in own.columns.drop(method):
      gap = (own[method] - own[baseline]).dropna()
      if not len(gap):
        continue
      mean, low, high = paired.interval(gap.to_numpy())
      found.append(
        {
          **dict(zip(case, about)),
          "baseline": baseline,
          "its PSNR": own[baseline].mean(),
          "fast()": own[method].mean(),
          "difference": mean,
          "half of 95 %": 1.96 * gap.std(ddof=1) / len(gap) ** 0.5,
          "pictures": len(gap),
          "from": low,
          "to": high,
        }
      )
  return pd.DataFrame(found).set_index([*case, "baseline"])
