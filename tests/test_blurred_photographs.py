"""Blurred photographs: the measurement, Tikhonov's estimate, the study."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

import posterior_jax as pj
from configs import blurred_photographs as config
from experiments.blurred_photographs import restoring, study
from experiments.blurred_photographs.settings import Settings
from experiments.data import photographs
from experiments.harness import command_line, runner
from experiments.restore.drawing import stepwise as drawing
from tests.oracles import refused

KERNEL = np.arange(1.0, 10).reshape(3, 3) / 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One photograph, of no more than the debug form needs."""
  found = tmp_path_factory.mktemp("given")
  (found / "a.png").write_bytes(
    photographs.as_png(photographs.load("chelsea", 96))
  )
  return found


def _settings(folder, **changes):
  debug = config.get_config("debug")
  debug.update({"folder": str(folder)} | changes)
  return command_line.to_settings(Settings, debug)


def test_a_crop_is_blurred_with_its_surroundings(folder):
  settings, (file,) = study.prepare(_settings(folder))
  picture = photographs.read(file) / 127.5 - 1
  one = restoring.blurred(file, settings, KERNEL, 0.0)
  scene = picture[23:73, 19:77]  # 50 x 58 in the middle of 96 x 96
  np.testing.assert_allclose(one.truth, scene[1:-1, 1:-1], atol=1e-6)
  expected = scipy.signal.correlate(scene, KERNEL[..., None], "valid")
  np.testing.assert_allclose(one.y, expected, atol=0.51 / 127.5)
  levels = (one.y + 1) * 127.5
  np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
  noisy = restoring.blurred(file, settings, KERNEL, 0.05).y
  assert (noisy - expected).std() == pytest.approx(0.05, rel=0.03)
  with refused(ValueError, "a.png must have 154 x 146 pixels at least"):
    restoring.blurred(file, settings, np.ones((99, 99)) / 99**2, 0.0)


def test_tikhonov_has_the_best_of_its_weights():
  """Against dense float64 solves."""
  rng = np.random.default_rng(0)
  scene = rng.uniform(-1, 1, (10, 12, 1)).cumsum(0).cumsum(1) / 12
  operator = pj.operators.blur(scene.shape, KERNEL, boundary="valid")
  y = np.asarray(operator.forward(jnp.asarray(np.float32(scene))))
  y = y + 0.02 * rng.standard_normal(y.shape)
  truth = scene[1:-1, 1:-1]
  one = restoring.Blurred("a", np.float32(y), truth, operator, 0.02)
  eye = np.eye(120).reshape(120, 10, 12)
  a = scipy.signal.correlate(eye, KERNEL[None], "valid").reshape(120, -1).T
  differences = [
    (eye - np.roll(eye, 1, axis)).reshape(120, 120).T for axis in (1, 2)
  ]
  gradient = sum(d.T @ d for d in differences) + 1e-6 * np.eye(120)
  best = 0.0
  for penalty in (np.eye(120), gradient):
    for weight in restoring.WEIGHTS:
      x = np.linalg.solve(a.T @ a + weight * penalty, a.T @ y.ravel())
      found = x.reshape(10, 12, 1)[1:-1, 1:-1]
      best = max(best, float(pj.metrics.psnr(np.float32(found), truth)))
  assert restoring.tikhonov(one) == pytest.approx(best, abs=0.02)


def _run(folder, workdir, *more):
  argv = ["blurred_photographs", f"--workdir={workdir}"]
  argv += [f"--config={command_line.CONFIGS / 'blurred_photographs.py'}:debug"]
  argv += [f"--config.folder={folder}", *more]
  runner.main(
    "blurred_photographs",
    Settings,
    study.study,
    argv,
    prepare=study.prepare,
    inputs=study.inputs,
  )
  return {
    part: [json.loads(line) for line in file.read_text().splitlines()]
    for part in ("noise", "kernel", "border")
    if (file := workdir / f"{part}.jsonl").exists()
  }


def _check(rows, said):
  assert [row["blur"] for row in rows["noise"]] == [
    "motion, medium",
    "Gaussian, std 1.6",
  ]
  for row in rows["noise"]:
    assert row["gain"] == pytest.approx(row["restored"] - row["Tikhonov"])
  (border,) = rows["border"]
  low, high = sorted((border["interior"], border["border"]))
  assert low < border["all"] < high
  for part in rows:
    assert f"{part}, medians:" in said


def test_the_study_without_its_sampler(folder, tmp_path, capsys, monkeypatch):
  """The fast twin of the next: images drawn by a stand-in."""

  def draw(given, *_):
    y = np.asarray(given.given.observation.y[0])
    operator = given.given.observation.operator
    beyond = [n - m for n, m in zip(operator.image_shape, y.shape)]
    image = np.pad(y, [(n // 2, -(-n // 2)) for n in beyond], "edge")
    return lambda key: drawing.Drawn(image, 1, 0)

  monkeypatch.setattr(drawing, "draw", draw)
  monkeypatch.setattr(study, "tikhonov", lambda one: 40.0)
  parts = "--config.parts=('noise', 'border')"
  rows = _run(folder, tmp_path / "run", parts)
  _check(rows, capsys.readouterr().out)
  assert rows["noise"][0]["gain"] < 0  # nothing was restored
  assert rows["border"][0]["Tikhonov"] == 40
  record = json.loads((tmp_path / "run/environment.json").read_text())
  content = (folder / "a.png").read_bytes()
  expected = {"photograph a.png": hashlib.sha256(content).hexdigest()}
  assert record["inputs"] == expected


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_the_study_prints_its_tables(folder, tmp_path, capsys):
  rows = _run(folder, tmp_path / "run")
  _check(rows, capsys.readouterr().out)
  assert rows["noise"][0]["gain"] > -3
  (turned,) = rows["kernel"]
  assert turned["back"] == pytest.approx(turned["drawn"] - turned["believed"])
  assert turned["back"] > 0  # found, the kernel is better than believed
  assert abs(turned["degrees"] - 15) <= 2.5  # the debug form's turn


def test_files_that_are_not_there_are_named(folder):
  with refused(ValueError, "folder must hold photographs"):
    study.prepare(_settings(""))
  with refused(ValueError, "only must name files of folder, 'b.png' is none"):
    study.prepare(_settings(folder, only=("b.png",)))
