"""`NFCConfig.fast()` beside the best baselines, at few network evaluations.

  python -m experiments.few_calls --config.folder=PICTURES

Settings: `configs/few_calls.py`. Every baseline is tuned for every task and
number of evaluations by `search`, on photographs (`settings.tuning_files`) that
neither the prior learned from nor a report restores; `fast()` is one setting
for all tasks. Forms that `fast()` could have (`variants`) are tuned on the same
crops, once over all tasks and once for each. Pictures are cut from the middle,
not averaged down.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.data.degradations import Degradation
from experiments.few_calls.contenders import BASELINES, has_form
from experiments.few_calls.differences import differences
from experiments.few_calls.methods import FAST, METHODS, SLOW
from experiments.few_calls.programs import Problems, Programs, measured
from experiments.few_calls.search import Found, Point, search
from experiments.few_calls.settings import Settings, Task
from experiments.few_calls.tuned import start as start_of
from experiments.harness import progress, record
from experiments.restoration import setup

TABLE, TRIALS = "few_calls", "trials"
ALL = "all tasks"
Row = dict[str, Any]


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
      if has_form(method, problem.tuning.observation.operator):
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
    if has_form(method, own.tuning.observation.operator)
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
