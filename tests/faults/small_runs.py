"""Small runs of long experiments: commands, inputs, and all that they leave."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import PIL.Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a clock says; and the command, which has --resume once it goes on.
CLOCK = ("seconds", "compile_seconds", "command")
RUNS = {
  "train_lm": (
    "--config.steps=4",
    "--config.save_every=2",
    "--config.report_every=1",
    "--config.held_out_bytes=300",
    "--config.model.num_hidden_layers=1",
    "--config.model.layer_types=('linear_attention',)",
  ),
  "finetune": (
    "--config.steps=4",
    "--config.save_every=2",
    "--config.length=64",
    "--config.rows=2",
  ),
  "train_prior": (
    "--config.steps=4",
    "--config.save_every=2",
    "--config.report_every=1",
  ),
  "restoration": (
    "--config.parts=('methods',)",
    "--config.methods=('MMPS',)",
    "--config.evaluations=(3,)",
    "--config.workers=1",
  ),
  "restore": (
    "--config.task=denoising",
    "--config.method=MMPS",
    "--config.levels=3",
    "--config.samples=2",
  ),
}


def inputs(name: str, folder: pathlib.Path) -> list[str]:
  """Options that name files made here."""
  folder.mkdir()
  if name == "train_lm":
    for module in ("ast", "bisect", "glob", "mailbox"):  # the last two held out
      (folder / f"{module}.py").write_text(f"{module} = 1\n" * 60)
    return [f"--config.data={folder}"]
  if name == "finetune":
    (folder / "a.txt").write_text("some words. " * 40)
    return [f"--config.data={folder}"]
  pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
  if name == "train_prior":
    PIL.Image.fromarray(pixels).save(folder / "a.png")
    return [f"--config.photographs={folder}"]
  if name == "restore":
    PIL.Image.fromarray(pixels[:32, :32]).save(folder / "a.png")
    return [f"--config.image={folder / 'a.png'}"]
  return []


def command(name: str, place: pathlib.Path) -> tuple[list[str], pathlib.Path]:
  """The command of a new run in a folder, and the run's own folder."""
  run = place / "run"
  words = [name, f"--config=configs/{name}.py:debug", *RUNS[name]]
  return [*words, *inputs(name, place / "in"), f"--workdir={run}"], run


def process(
  module: str, words: list[str], **environment: str
) -> tuple[int, str, str]:
  """Runs a module of the tests; return code, output, and what it said."""
  done = subprocess.run(
    [sys.executable, "-m", f"tests.faults.{module}", *words],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def results(run: pathlib.Path, *, steps: int = 4) -> dict[str, Any]:
  """All that the run leaves, but what a clock says; checks the steps' lines."""
  found: dict[str, Any] = {}
  for path in sorted(run.rglob("*")):
    name = str(path.relative_to(run))
    if path.is_dir() or name == ".lock":
      continue
    if path.suffix == ".npz":
      with np.load(path) as file:
        found[name] = {
          key: file[key].tobytes() for key in file if key not in CLOCK
        }
    elif path.suffix in (".json", ".jsonl"):
      text = path.read_text()
      lines = text.splitlines() if path.suffix == ".jsonl" else [text]
      rows = [json.loads(line) for line in lines]
      for row in rows:
        for key in CLOCK:
          row.pop(key, None)
      found[name] = rows
    elif path.suffix in (".html", ".csv"):  # made of the tables
      found[name] = path.stat().st_size > 0
    else:
      found[name] = path.read_bytes()
  (record,) = found.pop("environment.json")
  assert record["status"] == "finished"
  assert "training.jsonl" not in found or len(found["training.jsonl"]) == steps
  return found
