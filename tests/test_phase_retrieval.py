"""The study of phase retrieval: its scores, its summary, a small run."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import phase_retrieval as config
from experiments import phase_retrieval as study
from experiments.data import photographs
from experiments.harness import command_line, runner
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_an_image_and_its_turn_count_as_one():
  truth = (
    np.random.default_rng(0).uniform(-0.9, 0.9, (8, 8, 3)).astype(np.float32)
  )
  noisy = truth + np.float32(0.02)
  both = np.stack([noisy, noisy[::-1, ::-1]])
  found = study.up_to_a_turn(both[:, None], truth[None])[:, 0]
  np.testing.assert_allclose(found, 40.0, atol=0.01)  # 0.02 of 2
  assert study.up_to_a_turn(noisy[::-1], truth) < 15


def test_the_summary_is_of_the_best_restarts():
  rows = [
    {
      "photograph": str(i),
      "method": "NFC",
      "best": best,
      "by residual": best - 1,
      "spread": 2.0,
      "residual": 1.0,
    }
    for i, best in enumerate((10.0, 26.0, 30.0, 24.0))
  ]
  (line,) = study.summary(rows, 25.0).to_numpy()
  np.testing.assert_allclose(line, [25.0, 24.0, 0.5, 2.0])


@pytest.mark.slow
def test_every_method_restarts_on_every_photograph(tmp_path, capsys):
  given = tmp_path / "given"
  given.mkdir()
  cat = photographs.load("chelsea", 64)
  (given / "a.png").write_bytes(photographs.as_png(cat))
  settings = command_line.CONFIGS / "phase_retrieval.py"
  runner.main(
    "phase_retrieval",
    study.Settings,
    study.study,
    [
      "phase_retrieval",
      f"--config={settings}:debug",
      f"--config.folder={given}",
      f"--workdir={tmp_path / 'run'}",
    ],
    prepare=study.prepare,
    inputs=study.inputs,
  )
  lines = (tmp_path / "run/phase_retrieval.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["method"] for row in rows] == list(study.METHODS)
  for row in rows:
    assert row["best"] >= row["by residual"] > 0
    assert np.isfinite(row["residual"])
  said = capsys.readouterr().out
  assert "success rate" in said and "DAPS, a.png: " in said


@pytest.mark.slow
def test_a_method_finds_what_is_all_but_known():
  """From amplitudes and a prior that knows the photograph but for its noise."""
  truth = photographs.load("chelsea", 16)
  debug = config.get_config("debug")
  debug.update({"folder": "x", "levels": 10})
  settings = command_line.to_settings(study.Settings, debug)
  spectrum = np.full((16, 16), 1e-2, np.float32)

  def denoise(x, sigma):
    share = 1e-2 / (1e-2 + sigma[:, None, None, None] ** 2)
    return truth + share * (x - truth)

  prior = jax.tree_util.Partial(denoise)
  problem = study.Problem(
    settings, ("a",), jnp.asarray(truth[None]), prior, jnp.asarray(spectrum)
  )
  psnr, residual = study.retrieved(problem, "NFC spectrum")
  assert psnr.shape == residual.shape == (settings.restarts, 1)
  assert psnr.min() > 20 and residual.max() < 2


def test_the_record_names_the_photographs_and_the_prior(tmp_path):
  """Those that are used, by their hashes; and too few are refused."""
  small = photographs.as_png(photographs.load("chelsea", 16))
  for name in "ab":
    (tmp_path / f"{name}.png").write_bytes(small)
  debug = config.get_config("debug")
  debug.folder = str(tmp_path)
  problem = study.prepare(command_line.to_settings(study.Settings, debug))
  expected = {"photograph a.png": hashlib.sha256(small).hexdigest()}
  assert study.inputs(problem) == expected
  prior = tmp_path / "prior.pt"
  prior.write_bytes(b"weights")
  own = dataclasses.replace(problem.settings, prior=str(prior))
  expected["prior prior.pt"] = hashlib.sha256(b"weights").hexdigest()
  assert study.inputs(problem._replace(settings=own)) == expected
  debug.pictures = 3
  with refused(ValueError, "pictures must be at most 2, .* got 3"):
    study.prepare(command_line.to_settings(study.Settings, debug))


def test_what_is_not_there_is_refused():
  debug = config.get_config("debug")
  debug.methods = ("DAPS", "HIO")
  with refused(
    command_line.UsageError, "methods must be among DAPS, .*got 'HIO'"
  ):
    command_line.to_settings(study.Settings, debug)
  with refused(ValueError, "folder must hold photographs"):
    study.prepare(
      command_line.to_settings(study.Settings, config.get_config("debug"))
    )
