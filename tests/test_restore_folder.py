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


@pytest.fixture
def drawn(monkeypatch):
  """Images drawn by a stand-in, the keys that it was given."""
  keys = []

  def draw(given, *_):
    shape = given.given.observation.operator.image_shape

    def one(key):
      keys.append(key)
      return drawing.Drawn(np.zeros(shape, np.float32), 1, 0)

    return one

  monkeypatch.setattr(study, "draw", draw)
  monkeypatch.setattr(doubt, "second_opinion", lambda *_: 1.0)

  def reported(folder, *_):
    # A picture's own page is tested elsewhere and takes a second to draw.
    (folder / "report.html").touch()
    return folder / "report.html"

  monkeypatch.setattr(report, "write", reported)
  return keys


def test_a_bad_file_takes_no_other_with_it(pictures, tmp_path, capsys, drawn):
  """The fast twin of the slow test: images drawn by a stand-in."""
  fields = {"image": pictures, "task": "denoising", "samples": 1}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 4
  # Gone on with: what was drawn is kept, and rows are not written again.
  (tmp_path / "run/c.png/drawn/image.npz").unlink()
  _run(tmp_path / "run", "--resume", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 5


def test_a_file_that_cannot_be_read_is_left_out(
  pictures, tmp_path, capsys, drawn
):
  """Nor does it take others with it when the inputs are hashed."""
  (pictures / "c.png").unlink()
  (pictures / SAID).unlink()
  # A regular file whose first byte cannot be read, by nobody.
  (pictures / "d.npy").symlink_to("/proc/self/mem")
  with pytest.raises(OSError):
    (pictures / "d.npy").read_bytes()
  _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  said = capsys.readouterr()
  assert "d.npy is left out" in said.err
  assert "1 of 2 pictures are restored" in said.out
  assert len(drawn) == 3
  text = (tmp_path / "run/report.html").read_text()
  assert "Pictures restored: 1<" in text and "d.npy: " in text
  inputs = json.loads((tmp_path / "run/environment.json").read_text())["inputs"]
  assert set(inputs) == {"image a.png"}


def test_an_image_that_is_not_finite_is_left_out(
  pictures, tmp_path, capsys, drawn, monkeypatch
):
  whole = study.draw

  def draw(given, *more):
    one = whole(given, *more)
    if not given.settings.image.endswith("a.png"):
      return one
    return lambda key: one(key)._replace(image=one(key).image + np.nan)

  monkeypatch.setattr(study, "draw", draw)
  fields = {"image": pictures, "task": "denoising", "samples": 0}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  said = capsys.readouterr()
  assert "a.png is left out: the restored picture must be finite" in said.err
  assert "1 of 3 pictures are restored" in said.out


def test_where_none_can_be_restored_the_reason_is_told(
  pictures, tmp_path, capsys
):
  for name in ("a.png", "c.png"):
    (pictures / name).unlink()
  with pytest.raises(SystemExit) as stopped:
    _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  assert stopped.value.code == 2
  said = capsys.readouterr().err.splitlines()[-1]
  none = f"none of 1 pictures could be restored; {SAID}: image "
  assert none in said and said.endswith("it ends before its picture does")


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"task": "motion_blur", "kernel": "no.png"}, "kernel must be one of"),
    (
      {"task": "motion_blur", "kernel": "short", "prior": "no.pt"},
      "prior must name a file or directory",
    ),
    ({"task": "custom", "operator": "no.py"}, "operator must name a file"),
    (
      {"task": "custom", "operator": "{}/operator.py", "noise_std": None},
      "noise_std must be given with an operator",
    ),
    ({"task": "box_inpainting", "mask": "no.png"}, "mask must name a file"),
  ],
)
def test_mistakes_of_the_settings_are_told_once(pictures, fields, words):
  """Before the run's folder is opened, which `prepare` comes before."""
  (pictures / "operator.py").write_text("def operator(shape): ...")
  fields = {
    name: value.format(pictures) if isinstance(value, str) else value
    for name, value in fields.items()
  }
  with refused(ValueError, words):
    folder.prepare(_settings(pictures, **fields))


def test_thumbnails_of_strips_keep_both_sides():
  rng = np.random.default_rng(0)
  strip = rng.random((3, 4096, 3))
  found = folder._small(study.Written(strip, strip[:, :161], {}, None))
  assert found.given.shape == (1, 1365, 3)
  np.testing.assert_allclose(found.given[0, 1], strip[:, 3:6].mean((0, 1)))
  assert found.best.shape == (1, 80, 3)


def test_folders_of_no_pictures_are_refused(pictures, tmp_path):
  for name in ("a.png", "c.png", SAID):
    (pictures / name).unlink()
  with refused(ValueError, "must be a picture or a folder of some"):
    folder.prepare(_settings(pictures))


@pytest.mark.slow
def test_every_picture_of_a_folder_is_restored(pictures, tmp_path, capsys):
  _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  _check(tmp_path / "run", capsys.readouterr())


def _settings(image, **fields):
  found = config.get_config("debug")
  given = {"image": str(image), "task": "denoising", "noise_std": 0.1}
  found.update(given | fields)
  return command_line.to_settings(job.Settings, found)
