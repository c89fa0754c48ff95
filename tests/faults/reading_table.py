"""Mutated files of every kind, and what reading them took: a table.

`python -m tests.faults.reading_table [COUNT] [KIND ...]` draws COUNT (1000)
files of every kind, gives each to the function that a user calls, and prints
one row a kind. It ends with 1 if a file ended in anything but a load or one
sentence, took 2 s of the processor or 300 MB, hung, or was read from elsewhere.
"""

import collections
import faulthandler
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import hypothesis

from tests.faults import kinds, spending

MOST_SECONDS, MOST_MEGABYTES = 2.0, 300.0
HUNG = 60  # seconds on the clock: the processor may be another's meanwhile
ROOT = pathlib.Path(__file__).parents[2]
TITLES = ("kind", "files", "loaded", "refused", "s", "MB", "failures")


def study(name: str, count: int) -> dict[str, object]:
  """A row: how mutated files of a kind ended, and the most that one took."""
  kind, ends = kinds.KINDS[name], collections.Counter()
  failures: list[str] = []
  most = {"s": 0.0, "MB": 0.0}
  with tempfile.TemporaryDirectory() as home:
    folder = kinds.make(kind, pathlib.Path(home))
    file = folder / kind.file
    sound = file.read_bytes()
    kind.load(folder)  # what is imported and compiled once is no file's fault

    @hypothesis.settings(
      max_examples=count,
      database=None,
      deadline=None,
      derandomize=True,
      phases=[hypothesis.Phase.generate],
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.mutations(sound))
    def one(data: bytes) -> None:
      file.write_bytes(data)
      faulthandler.dump_traceback_later(HUNG, exit=True)
      try:
        with kinds.inside(folder), spending.measured() as spent:
          said = kinds.outcome(lambda: kind.load(folder), folder)
        ends["refused" if said else "loaded"] += 1
        most["s"] = max(most["s"], spent.seconds)
        most["MB"] = max(most["MB"], spent.megabytes)
        if spent.seconds >= MOST_SECONDS or spent.megabytes >= MOST_MEGABYTES:
          failures.append(f"{spent.seconds:.1f} s, {spent.megabytes:.0f} MB")
      except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
          raise
        failures.append(f"{type(error).__name__}: {error}"[:300])
      finally:
        faulthandler.cancel_dump_traceback_later()

    one()
  row = {"kind": name, "files": sum(ends.values()) + len(failures)}
  row |= {end: ends[end] for end in ("loaded", "refused")}
  row |= {key: round(value, 2) for key, value in most.items()}
  return row | {"failures": failures}


def table(names: list[str], count: int) -> list[dict[str, object]]:
  """A row for every kind, each of a process of its own."""
  rows = []
  for name in names:
    command = [sys.executable, "-m", __spec__.name, "--one", name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    row = json.loads(lines[-1]) if done.returncode == 0 and lines else None
    hung = [f"stopped: {done.stderr[-2000:]}"]
    rows.append(
      row or dict.fromkeys(TITLES, 0) | {"kind": name, "failures": hung}
    )
    print(
      _line({**rows[-1], "failures": len(rows[-1]["failures"])}), flush=True
    )
  return rows


def _line(row: dict[str, object]) -> str:
  first, *rest = TITLES
  cells = (f"{row[title]:>9}" for title in rest)
  return f"{row[first]:<18}" + "".join(cells)


def main(arguments: list[str]) -> int:
  """Prints the table and what failed."""
  if arguments[:1] == ["--one"]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(study(arguments[1], int(arguments[2]))))
    return 0
  count = (
    int(arguments.pop(0)) if arguments[:1] and arguments[0].isdigit() else 1000
  )
  print(_line(dict(zip(TITLES, TITLES))))
  rows = table(arguments or list(kinds.KINDS), count)
  for row in rows:
    for failure in row["failures"][:5]:
      print(f"{row['kind']}: {failure}")
  return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
