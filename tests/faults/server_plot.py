"""What 500 calls of a server leave behind: a report with its plot.

`python -m tests.faults.server_plot [COUNT] [WORKDIR]` makes COUNT (500) calls
of `run` and of `generate` (`tests.faults.server`), each in a process of its
own, and writes tables and `report.html` into WORKDIR (`runs/server`). It ends
with 1 if a server has compiled more than 8 programs, or has grown after the
first 50 calls.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import pandas as pd

from experiments.harness import record
from experiments.harness.reporting import page, report
from tests.faults import server

ROOT = pathlib.Path(__file__).parents[2]
TABLE = "server"
SERVERS = ("run", "generate")
WARM = 50  # calls, after which nothing grows
# By column: how much is allowed, and how it is said.
MOST = {
  "programs": (8, "{:.0f} programs were compiled"),
  "megabytes": (50, "memory grew by {:.0f} MB"),
  "maps": (50, "{:.0f} memory maps were added"),
}
PANELS = {
  "programs": "programs",
  "megabytes": "resident memory, MB",
  "maps": "memory maps",
}


def calls_of(name: str, count: int) -> Any:
  """The calls of one of SERVERS."""
  if name == "run":
    return server.restoring(count)
  return server.generating(server.small_model(), count)


def failures(rows: pd.DataFrame) -> list[str]:
  """A sentence for everything that was to stay small, and did not."""
  found = []
  for name, life in rows.groupby("server", sort=False):
    last, early = life.iloc[-1], life.iloc[min(WARM, len(life)) - 1]
    grown = {key: last[key] - early[key] for key in MOST}
    grown["programs"] = last["programs"]
    found += [
      f"{name}: {words.format(grown[key])}, at most {most} is allowed"
      for key, (most, words) in MOST.items()
      if grown[key] > most
    ]
  return found


def write(run: record.Run, count: int) -> pathlib.Path:
  """Writes `report.html` of the run's table."""
  rows = run.frame(TABLE)
  chosen = rows[rows.call.isin((1, WARM, count))]
  wrong = failures(rows)
  made = page.begin(
    pathlib.Path(__file__).with_suffix(".md"),
    run=run,
    count=count,
    longest=server.LONGEST,
    warm=WARM,
    plot=plot(rows),
    server=page.Table(
      chosen.set_index(["server", "call"]),
      {"programs": 0, "megabytes": 1, "maps": 0},
    ),
    verdict="; ".join(wrong) or "Nothing grew after the first calls.",
  )
  return made.write(run.folder / "report.html")


def plot(rows: pd.DataFrame) -> Any:
  """A panel for each number, a line for each server."""
  import matplotlib.pyplot as plt

  figure, panels = plt.subplots(len(PANELS), figsize=(9, 8), sharex=True)
  for axes, (key, label) in zip(panels, PANELS.items()):
    axes.axvspan(0, WARM, color="0.93")
    for name, life in rows.groupby("server", sort=False):
      axes.plot(life.call, life[key], label=name)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.2)
  panels[0].legend(loc="lower right")
  panels[-1].set_xlabel("call")
  figure.align_ylabels()
  return figure


def main(arguments: list[str]) -> int:
  """Makes the calls, writes the report and says what grew."""
  if arguments[:1] == ["--one"]:
    # Programs of a cache on disk would be loaded, not compiled.
    jax.config.update("jax_enable_compilation_cache", False)
    for seen in server.life(calls_of(arguments[1], int(arguments[2]))):
      print(json.dumps(seen._asdict()), flush=True)
    return 0
  count = int(arguments.pop(0)) if arguments else 500
  workdir = pathlib.Path(arguments.pop(0) if arguments else "runs/server")
  with record.Run(workdir, command=record.command_line()) as run:
    for name in SERVERS:
      for line in _process(name, count):
        run.write(TABLE, {"server": name} | json.loads(line))
    print(f"report: {report.shown(write(run, count))}")
    wrong = failures(run.frame(TABLE))
  for words in wrong:
    print(words)
  return int(bool(wrong))


def _process(name: str, count: int) -> list[str]:
  """Lines of a server of its own."""
  command = [sys.executable, "-m", __spec__.name, "--one", name, str(count)]
  environment = {"JAX_PLATFORMS": "cpu"} | os.environ
  done = subprocess.run(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
  )
  done.check_returncode()
  return done.stdout.splitlines()


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
