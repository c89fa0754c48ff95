"""The runner: configs, refusals in one sentence, and what a run leaves."""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest

from experiments.harness import command_line, progress, record, runner
from experiments.harness.folders import open_folder
from experiments.harness.rows import Table
from experiments.harness.settings import Checked
from tests.oracles import refused

ROOT = pathlib.Path(__file__).resolve().parents[1]

CONFIG = '''"""A config for tests.

Command: none
"""
import ml_collections

def get_config(form=""):
  if form not in ("", "debug"):
    raise ValueError(f"this config has the form debug, not {form!r}")
  return ml_collections.ConfigDict(
    {"seed": 3, "part": {"rate": 0.5, "names": ("a", "b"), "on": False}}
  )
'''


@dataclasses.dataclass(frozen=True)
class Part:
  rate: float
  names: tuple[str, ...]
  on: bool

  def __post_init__(self):
    if self.rate < 0:
      raise ValueError(f"rate must be at least 0, got {self.rate}")


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
  seed: int
  part: Part


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "some_config.py"
  path.write_text(CONFIG)
  return path


def _experiment(seen):
  def experiment(settings, run):
    seen.append((settings, run.folder))
    run.write("scores", {"step": 1, "loss": 0.25})

  return experiment


def _main(*arguments, seen=None):
  runner.main(
    "quickstart",
    Settings,
    _experiment([] if seen is None else seen),
    argv=["quickstart", *map(str, arguments)],
  )


def test_overrides_reach_a_frozen_dataclass(config_file, tmp_path):
  seen = []
  _main(
    f"--config={config_file}",
    "--config.part.rate=0.75",
    "--config.part.on",
    "--config.part.names=('x',)",
    f"--workdir={tmp_path / 'out'}",
    seen=seen,
  )
  settings, folder = seen[0]
  assert settings == Settings(3, Part(0.75, ("x",), True))
  assert folder == tmp_path / "out"
  with pytest.raises(dataclasses.FrozenInstanceError):
    settings.seed = 4


def test_a_workdir_may_be_added_to_a_command(config_file):
  """What stops a run says: the same command with --resume --workdir=THERE."""
  argv = ["x", f"--config={config_file}", "--workdir=a", "--workdir=a/2"]
  command = command_line.parse(argv, "quickstart")
  assert command.workdir == pathlib.Path("a/2")


def test_config_is_locked(config_file):
  command = command_line.parse(["x", f"--config={config_file}"], "quickstart")
  with pytest.raises(AttributeError):
    command.config.extra = 1


def test_separate_value_and_default_workdir(config_file):
  argv = ["x", "--config", str(config_file), "--config.seed", "9"]
  command = command_line.parse(argv, "quickstart")
  assert command.config.seed == 9
  assert command.workdir == pathlib.Path("runs/quickstart")


REFUSALS = {
  "unknown field": (["--config.sed=1"], "unknown config field 'sed'"),
  "unknown nested field": (
    ["--config.part.rte=1"],
    "unknown config field 'part.rte': there is no 'rte'; this level has "
    "names, on, rate",
  ),
  "field below a value": (["--config.seed.x=1"], "has no fields"),
  "wrong type": (["--config.seed=abc"], "invalid literal for int()"),
  "no switch": (
    ["--config.part.on=maybe"],
    "part.on must be True or False, got 'maybe'",
  ),
  "refused value": (["--config.part.rate=-1."], "rate must be at least 0"),
  "unknown flag": (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
  "given twice": (
    ["--config.part.names=('x',)", "--config.part.names", "('y',)"],
    "--config.part.names is given 2 times; give it once, several values of a "
    'tuple together, as "(20,50)"',
  ),
  "two configs": (["--config=other.py"], "--config is given 2 times"),
  "turned off and on": (
    ["--noconfig.part.on", "-config.part.on=True"],
    "--config.part.on is given 2 times",
  ),
  "a tuple of others": (
    ["--config.part.names=1"],
    "names must be a tuple of words in quotes, got (1,)",
  ),
  "seed below 0": (["--config.seed=-1"], "seed must lie in [0, 2147483647]"),
  "stray word": (["fast"], "unexpected argument 'fast'"),
}


def _sentence(capsys, *arguments):
  with pytest.raises(SystemExit) as stop:
    _main(*arguments)
  assert stop.value.code == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  lines = captured.err.strip().splitlines()
  assert len(lines) == 1, captured.err
  return lines[0]


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_sentence(case, config_file, tmp_path, capsys):
  arguments, words = REFUSALS[case]
  workdir = tmp_path / "out"
  said = _sentence(
    capsys, f"--config={config_file}", *arguments, f"--workdir={workdir}"
  )
  assert words in said
  assert not workdir.exists()


def test_lines_of_a_flagfile_are_a_part_of_the_command(
  config_file, tmp_path, capsys
):
  file = tmp_path / "flags.txt"
  file.write_text(f"--config={config_file}\n--config.part.names=('x',)\n")
  command = command_line.parse(["x", f"--flagfile={file}"], "quickstart")
  assert command.config.part.names == ("x",)
  more = "--config.part.names=('y',)"
  said = _sentence(capsys, f"--flagfile={file}", more)
  assert "--config.part.names is given 2 times" in said
  assert "none.txt" in _sentence(capsys, f"--flagfile={tmp_path / 'none.txt'}")


def test_unknown_form_and_missing_file(config_file, tmp_path, capsys):
  said = _sentence(capsys, f"--config={config_file}:fast")
  assert said == "quickstart: this config has the form debug, not 'fast'"
  said = _sentence(capsys, f"--config={tmp_path / 'none.py'}")
  assert "none.py names no readable config file" in said


def test_field_the_settings_do_not_have():
  extra = ml_collections.ConfigDict({"seed": 1, "extra": 2})
  with pytest.raises(
    command_line.UsageError, match="'extra' is unknown to Settings"
  ):
    command_line.to_settings(Settings, extra)
  short = ml_collections.ConfigDict({"seed": 1, "part": {}})
  with pytest.raises(command_line.UsageError, match="missing 3 required"):
    command_line.to_settings(Settings, short)


@dataclasses.dataclass(frozen=True)
class Tuples:
  counts: tuple[int, ...] = ()
  shares: tuple[float, ...] = ()
  pair: tuple[float, float] = (0.0, 1.0)
  shapes: tuple[tuple[int, ...], ...] = ()


@pytest.mark.parametrize(
  "name, value, words",
  [
    ("counts", (2.5,), "a tuple of whole numbers, got (2.5,)"),
    ("counts", (True,), "a tuple of whole numbers, got (True,)"),
    ("counts", ("(20",), "a tuple of whole numbers, got ('(20',)"),
    ("counts", 3, "a tuple of whole numbers, got 3"),
    ("shares", ("nan",), "a tuple of numbers, got ('nan',)"),
    ("pair", (1.0,), "a tuple of 2 numbers, got (1.0,)"),
    ("shapes", (1, 2), "a tuple of tuples of whole numbers, got (1, 2)"),
  ],
)
def test_elements_of_tuples_are_of_the_kind_of_their_field(name, value, words):
  """ml_collections lets anything in, and so a traceback or half a level."""
  fit = {"counts": (1,), "shares": (1, 0.5), "shapes": [[1, 2], (3,)]}
  command_line.to_settings(Tuples, fit)
  with refused(command_line.UsageError, f"{name} must be {re.escape(words)}"):
    command_line.to_settings(Tuples, {name: value})


def test_unwritable_workdir(config_file, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  workdir = tmp_path / "file" / "out"
  said = _sentence(capsys, f"--config={config_file}", f"--workdir={workdir}")
  assert f"workdir '{workdir}' cannot be written (Not a directory)" in said


@pytest.mark.skipif(
  not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere"
)
def test_read_only_workdir(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(ValueError, match="cannot be written"):
    open_folder(tmp_path / "out")


def test_no_traceback_from_a_fresh_process(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.prior_speed",
      "--config.nope=1",
      f"--workdir={tmp_path / 'out'}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert "unknown config field 'nope'" in done.stderr
  assert "Traceback" not in done.stderr


def test_runs_never_write_over_each_other(config_file, tmp_path, capsys):
  seen = []
  for _ in range(3):
    _main(f"--config={config_file}", f"--workdir={tmp_path / 'o'}", seen=seen)
  folders = [folder for _, folder in seen]
  assert folders == [tmp_path / "o", tmp_path / "o/2", tmp_path / "o/3"]
  assert "is in use; this run goes to" in capsys.readouterr().out
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/report.html").write_text("precious")
  folder, held = open_folder(tmp_path / "mine")
  held.close()
  assert folder == tmp_path / "mine/2"


def test_environment_record(config_file, tmp_path):
  _main(f"--config={config_file}", f"--workdir={tmp_path / 'o'}")
  kept = json.loads((tmp_path / "o/environment.json").read_text())
  assert kept["status"] == "finished"
  assert kept["config"]["part"]["rate"] == 0.5
  assert kept["versions"]["jax"] and kept["devices"] and kept["command"]
  assert kept["seconds"] >= 0


def test_environment_of_a_run_that_failed(tmp_path):
  with pytest.raises(RuntimeError), record.Run(tmp_path / "o"):
    raise RuntimeError("broken")
  kept = json.loads((tmp_path / "o/environment.json").read_text())
  assert kept["status"] == "stopped by RuntimeError"


ROWS = [
  {"name": 'comma, "quote"', "error": 1e-7, "count": 3, "ok": True},
  {"name": "line\nbreak", "error": math.inf, "count": None, "ok": False},
  {"name": "é", "error": math.nan, "count": 0, "ok": True},
]


def test_tables_as_json_lines_and_csv(tmp_path):
  table = Table(tmp_path / "t")
  for row in ROWS:
    table.write(row)
  table.close()
  lines = (tmp_path / "t.jsonl").read_text().splitlines()
  kept = [json.loads(line, parse_constant=pytest.fail) for line in lines]
  assert [row["name"] for row in kept] == [row["name"] for row in ROWS]
  assert kept[0] == ROWS[0] and kept[1]["error"] == "inf"
  assert math.isnan(float(kept[2]["error"])) and kept[1]["count"] is None
  with (tmp_path / "t.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["name"] for row in rows] == [row["name"] for row in ROWS]
  assert float(rows[0]["error"]) == 1e-7
  assert float(rows[1]["error"]) == math.inf and rows[1]["count"] == ""


def test_table_goes_on_after_a_kill(tmp_path):
  first = Table(tmp_path / "t")
  first.write({"step": 1, "loss": 0.5})
  first.close()
  for name in ("t.jsonl", "t.csv"):  # a line cut in the middle
    with (tmp_path / name).open("a") as file:
      file.write('{"step": 2, "lo')
  second = Table(tmp_path / "t")
  second.write({"step": 2, "loss": 0.25})
  with pytest.raises(ValueError, match="the table has"):
    second.write({"step": 3})
  second.close()
  lines = (tmp_path / "t.jsonl").read_text().splitlines()
  assert [json.loads(line)["loss"] for line in lines] == [0.5, 0.25]
  assert (tmp_path / "t.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_a_row_of_one_file_only_is_dropped(tmp_path):
  table = Table(tmp_path / "t")
  table.write({"words": "two\nlines", "loss": 0.5})
  table.write({"words": "a", "loss": math.inf})
  table.close()
  with open(tmp_path / "t.csv", "a") as file:  # killed between the two writes
    file.write('"b\n",0.2\n')
  table = Table(tmp_path / "t")
  assert table.rows() == [
    {"words": "two\nlines", "loss": 0.5},
    {"words": "a", "loss": "inf"},
  ]
  table.write({"words": "b", "loss": 0.3})
  assert len(table.rows()) == 3
  table.close()
  with open(tmp_path / "t.csv", newline="") as file:
    words = [row["words"] for row in csv.DictReader(file)]
  assert words == ["two\nlines", "a", "b"]


def _counting(settings, run):
  """Three rows; stops after two where `stop` is in the folder's parent."""
  done = {row["step"] for row in run.rows("steps")}
  for step in sorted({1, 2, 3} - done):
    if step == 3 and (run.folder.parent / "stop").exists():
      raise KeyboardInterrupt
    run.write("steps", {"step": step, "seed": settings.seed})


def _resumed(config_file, workdir, *arguments, **options):
  options = {"resumable": True} | options
  runner.main(
    "quickstart",
    Settings,
    _counting,
    [
      "quickstart",
      f"--config={config_file}",
      f"--workdir={workdir}",
      "--resume",
      *arguments,
    ],
    **options,
  )


def test_a_resumed_run_goes_on_in_its_folder(config_file, tmp_path, capsys):
  workdir = tmp_path / "o"
  workdir.mkdir()
  (tmp_path / "stop").touch()
  with pytest.raises(SystemExit) as stop:
    _resumed(config_file, workdir)  # nothing there yet: a start
  assert stop.value.code == runner.INTERRUPTED
  assert capsys.readouterr().err == (
    "quickstart: interrupted; the same command goes on with --resume "
    f"--workdir={workdir}\n"
  )
  (tmp_path / "stop").unlink()
  _resumed(config_file, workdir)
  lines = (workdir / "steps.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
  kept = json.loads((workdir / "environment.json").read_text())
  assert kept["status"] == "finished"
  assert [e["status"] for e in kept["earlier"]] == [
    "stopped by KeyboardInterrupt"
  ]
  before = (workdir / "steps.csv").read_bytes()
  _resumed(config_file, workdir)
  assert (workdir / "steps.csv").read_bytes() == before
  kept = json.loads((workdir / "environment.json").read_text())
  assert len(kept["earlier"]) == 2 and "earlier" not in kept["earlier"][1]
  assert not (workdir / "2").exists()


def _said(capsys, *arguments, **options):
  with pytest.raises(SystemExit) as stop:
    _resumed(*arguments, **options)
  assert stop.value.code == 2
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.count("\n") == 1
  return captured.err


def test_what_cannot_be_resumed(config_file, tmp_path, capsys):
  workdir = tmp_path / "o"
  workdir.mkdir()
  _resumed(config_file, workdir)
  before = (workdir / "environment.json").read_bytes()
  said = _said(capsys, config_file, workdir, "--config.seed=4")
  assert "holds a run whose seed is 3, not 4" in said
  said = _said(capsys, config_file, workdir, resumable=False)
  assert "quickstart has no --resume" in said
  assert (workdir / "environment.json").read_bytes() == before
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/notes.txt").write_text("precious")
  said = _said(capsys, config_file, tmp_path / "mine")
  assert "holds no run that could be resumed" in said
  assert len(list((tmp_path / "mine").iterdir())) == 1


def test_what_prepare_refuses_leaves_nothing(config_file, tmp_path, capsys):
  def prepare(settings):
    raise FileNotFoundError(f"no file for seed {settings.seed}")

  said = _said(capsys, config_file, tmp_path / "o", prepare=prepare)
  assert said == "quickstart: no file for seed 3\n"
  assert not (tmp_path / "o").exists()


class _Stream(list):
  def __init__(self, tty):
    self.isatty = lambda: tty

  def write(self, words):
    self.append(words)

  def flush(self):
    pass


def test_progress_is_plain_without_a_terminal():
  stream = _Stream(tty=False)
  with progress.Progress(3, label="job", stream=stream, every=0.0) as tick:
    for name in "abc":
      tick(name)
  text = "".join(stream)
  # A line is one write, which no other thread's comes between.
  assert all(each.count("\n") == 1 for each in stream)
  assert "\r" not in text and "\x1b" not in text
  assert [line.split(" (")[0] for line in text.splitlines()] == [
    "job 0/3 a",
    "job 1/3 b",
    "job 2/3 c",
    "job 3/3 done",
  ]


def test_progress_is_a_bar_on_a_terminal():
  stream = _Stream(tty=True)
  with progress.Progress(2, label="job", stream=stream) as tick:
    tick("a")
    tick("b")
  assert "2/2" in "".join(stream) and "\r" in "".join(stream)


def test_help_names_fields_and_command(capsys):
  runner.main("quickstart", Settings, _experiment([]), argv=["x", "--help"])
  text = capsys.readouterr().out
  assert "--config.inverse.draws=" in text
  assert "python -m experiments.quickstart" in text
