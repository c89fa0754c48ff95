"""A folder of pictures: all restored, one report, and no file takes another."""

import json

import numpy as np
import pytest

from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line, runner
from experiments.restore import doubt, drawing, folder, job, report, study
from tests.oracles import refused

CONFIG = command_line.CONFIGS / "restore.py"
SAID = "broken.png"


@pytest.fixture
def pictures(tmp_path):
  """Two pictures of different sizes, one cut short, and a text."""
  given = tmp_path / "pictures"
  given.mkdir()
  cat = photographs.load("chelsea", 64)
  whole = photographs.as_png(cat[:40, :45])
  (given / "a.png").write_bytes(whole)
  (given / SAID).write_bytes(whole[: len(whole) // 2])
  (given / "c.png").write_bytes(photographs.as_png(cat[:33, :40]))
  (given / "notes.txt").write_text("no picture")
  return given


def _run(workdir, *more, **fields):
  argv = ["restore", f"--config={CONFIG}:debug", f"--workdir={workdir}", *more]
  argv += [f"--config.{name}={value}" for name, value in fields.items()]
  runner.main(
    "restore",
    job.Settings,
    folder.restore,
    argv,
    prepare=folder.prepare,
    inputs=folder.inputs,
    resumable=True,
  )


def _check(workdir, said):
  """What is left of the run, whoever drew the images."""
  rows = (workdir / "restore.jsonl").read_text().splitlines()
  sides = [(row["height"], row["width"]) for row in map(json.loads, rows)]
  assert sides == [(40, 45), (33, 40)]
  for name in ("a.png", "c.png"):
    assert (workdir / name / "restored.png").is_file()
    assert (workdir / name / "report.html").is_file()
  assert "broken.png is left out" in said.err and "truncated" in said.err
  assert "2 of 3 pictures are restored" in said.out
  text = (workdir / "report.html").read_text()
  assert all(name in text for name in ("a.png", "c.png", "Left out", SAID))
  assert "notes.txt" not in text


def test_a_bad_file_takes_no_other_with_it(
  pictures, tmp_path, capsys, monkeypatch
):
  """The fast twin of the next test: images drawn by a stand-in."""
  drawn = []

  def draw(given, *_):
    shape = given.given.observation.operator.image_shape

    def one(key):
      drawn.append(key)
      return drawing.Drawn(np.zeros(shape, np.float32), 1, 0)

    return one

  monkeypatch.setattr(study, "draw", draw)
  monkeypatch.setattr(doubt, "about", lambda *_: [])

  def reported(folder, *_):
    # A picture's own page is tested elsewhere and takes a second to draw.
    (folder / "report.html").touch()
    return folder / "report.html"

  monkeypatch.setattr(report, "write", reported)
  fields = {"image": pictures, "task": "denoising", "samples": 1}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 4
  # Gone on with: what was drawn is kept, and rows are not written again.
  (tmp_path / "run/c.png/drawn/image.npz").unlink()
  _run(tmp_path / "run", "--resume", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 5


def test_folders_of_no_pictures_are_refused(pictures, tmp_path):
  for name in ("a.png", "c.png", SAID):
    (pictures / name).unlink()
  with refused(ValueError, "must be a picture or a folder of some"):
    folder.prepare(_settings(pictures))


@pytest.mark.slow
def test_every_picture_of_a_folder_is_restored(pictures, tmp_path, capsys):
  _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  _check(tmp_path / "run", capsys.readouterr())


def _settings(image):
  found = config.get_config("debug")
  found.update(image=str(image), task="denoising", noise_std=0.1)
  return command_line.to_settings(job.Settings, found)
