"""Every method tuned alike, for PSNR and for LPIPS, at several budgets.

  python -m experiments.equal_tuning --config.folder=PICTURES
    --config.photographs=OTHERS --config.lpips=FILE

Settings: `configs/equal_tuning.py`. A cell is a method, a task and a budget in
evaluations of the network: it is tuned by `rounds`, as many points for every
method, on pictures that no report restores, and what scored best by PSNR and by
LPIPS restores the pictures of the report. Cells are files of a folder: several
processes, a card each, share them (`--config.cells`). A search begins from the
winners of the budget before, and is not begun until they are there, whoever
finds them. What the rows and points of runs before say is not done again
(`--config.known`).
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
from experiments.equal_tuning.cells import Cell, before, cells
from experiments.equal_tuning.pending import Pending
from experiments.equal_tuning.settings import Given, Settings
from experiments.equal_tuning.tables import FAILED, PRIOR, TABLE, TRIED
from experiments.harness import record
from experiments.harness.progress import Progress

_QUIET = 60.0  # seconds without work, after which it says what it waits for


def compare(given: Given, run: record.Run) -> None:
  """Tunes and reports all cells, writes their rows as they come."""
  settings = given.settings
  run.write_once(PRIOR, given.prior, ["prior"])
  with Progress(len(cells(given.settings)), label=TABLE) as tick:
    folder = pathlib.Path(settings.cells or run.folder / "cells")
    for name, row in work(given, folder, tick):
      run.write(name, row)
  if not run.rows(TABLE):
    print(
      "every cell was begun by another process, or nothing is left of it"
      + ", or has no winners to restore by" * settings.again
    )
    return
  about = (
    f"{len(given.names)} pictures at {settings.size} x {settings.size}, noise "
    f"{settings.noise_std:g}, {given.prior.prior} prior, "
    + (
      "by what was best under the prior of the known searches."
      if settings.again
      else f"tuned on {len(given.tuning)} others."
    )
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
  settings = given.settings
  folder.mkdir(parents=True, exist_ok=True)
  bench = Bench(given, folder)
  waiting: queue.PriorityQueue = queue.PriorityQueue()
  pending = Pending(settings, bench, folder)
  over = threading.Event()

  def compiling() -> None:
    while len(pending) and not over.is_set():
      if (found := pending.take()) is None:
        over.wait(0.1)
        continue
      number, cell = found
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
        else:
          yield from bench.done(cell, program)
        pending.is_done(cell)
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
