"""Every method tuned alike, for PSNR and for LPIPS, at several budgets.

  python -m experiments.equal_tuning --config.folder=PICTURES
    --config.photographs=OTHERS --config.lpips=FILE

Settings: `configs/equal_tuning.py`. A cell is a method, a task and a budget in
evaluations of the network: it is tuned by `rounds`, as many points for every
method, on pictures that no report restores, and what scored best by PSNR and by
LPIPS restores the pictures of the report. Cells are files of a folder: several
processes, a card each, share them. A search begins from the winners of the
budget before, and is not begun until they are there, whoever finds them.
"""

import concurrent.futures
import math
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.equal_tuning import report, tables
from experiments.equal_tuning.bench import Bench
from experiments.equal_tuning.cells import Cell, before, begun, cells
from experiments.equal_tuning.settings import Given, Settings
from experiments.equal_tuning.tables import FAILED, TABLE, TRIED
from experiments.harness import record
from experiments.harness.progress import Progress

_AHEAD = 3  # of the longest cells, that one process may have begun
_QUIET = 60.0  # seconds without work, after which it says what it waits for


def compare(given: Given, run: record.Run) -> None:
  """Tunes and reports all cells, writes their rows as they come."""
  with Progress(len(cells(given.settings)), label=TABLE) as tick:
    for name, row in work(given, run.folder / "cells", tick):
      run.write(name, row)
  settings = given.settings
  about = (
    f"{len(given.names)} pictures at {settings.size} x {settings.size}, noise "
    f"{settings.noise_std:g}, tuned on {len(given.tuning)} others."
  )
  rows = tables.named(run.frame(TABLE))
  report.write(run, rows, run.frame(TRIED), run.frame(FAILED), about)


def work(
  given: Given, folder: pathlib.Path, tick: Any
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Does the cells that nobody has begun, the first ones first.

  Args:
    given: settings and data.
    folder: with a file for every cell that was begun.
    tick: called with the words of every cell.

  Returns:
    (table, row) pairs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  settings = given.settings
  bench = Bench(given, folder)
  waiting: queue.PriorityQueue = queue.PriorityQueue()
  listed = iter(enumerate(cells(settings)))
  lock, over = threading.Lock(), threading.Event()
  ahead = 0  # evaluations of what was begun here and is not done

  def compiling() -> None:
    nonlocal ahead
    while not over.is_set():
      with lock:
        number, cell = next(listed, (None, None))
      if cell is None or number is None:
        return
      calls = settings.evaluations[cell.budget]
      # Long cells are not taken before they can be run soon: another process
      # may be there sooner.
      while (
        bench.waits(cell) or ahead > _AHEAD * settings.evaluations[-1] - calls
      ):
        if over.wait(0.05):
          return
      if not begun(folder / str(number)):
        continue
      with lock:
        ahead += calls
      try:
        waiting.put((number, cell, bench.program(cell)))
      except Exception as error:  # one method must not end the others
        waiting.put((number, cell, error))

  with concurrent.futures.ThreadPoolExecutor(settings.workers) as pool:
    jobs = [pool.submit(compiling) for _ in range(settings.workers)]
    quiet = time.monotonic()
    try:
      while not (all(job.done() for job in jobs) and waiting.empty()):
        try:
          _, cell, program = waiting.get(timeout=0.1)
        except queue.Empty:
          if time.monotonic() > quiet + _QUIET:
            _say_why(bench, settings, folder)
            quiet = math.inf
          continue
        tick(str(cell))
        if isinstance(program, Exception):
          bench.give_up(cell)
          yield FAILED, _failed(settings, cell, program)
        elif program is not None:
          yield from bench.done(cell, program)
          if cell.budget < len(settings.chains):
            yield from bench.means(cell, program)
        with lock:
          ahead -= settings.evaluations[cell.budget]
        quiet = time.monotonic()
    finally:
      over.set()


def _failed(settings: Settings, cell: Cell, error: Exception) -> dict[str, Any]:
  """The row of a cell that has no program, which is printed as well."""
  words = f"{type(error).__name__}: {error}"
  print(f"{cell}: {words}", flush=True)
  return {
    "method": cell.method,
    "evaluations": settings.evaluations[cell.budget],
    "task": cell.task,
    "error": words,
  }


def _say_why(bench: Bench, settings: Settings, folder: pathlib.Path) -> None:
  """Names the first cell that another process has begun and not ended."""
  listed = cells(settings)
  for cell in listed:
    if bench.waits(cell):
      number = listed.index(before(cell))
      print(
        f"{cell} waits for {before(cell)}, which another process has begun; "
        f"if that has ended, remove {folder / str(number)} and start one more",
        flush=True,
      )
      return
