"""The study of gradients: what it refuses, its tables, its report."""

import csv

import numpy as np
import pytest

from configs import gradient_study as config
from experiments.gradient_study import study
from experiments.harness import command_line, runner
from tests.oracles import refused


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"block": 3}, "steps must be a multiple of block = 3, got 4"),
    ({"seeds": 0}, "seeds must be at least 1, got 0"),
    ({"cases": ()}, "cases must be a tuple of at least one"),
    ({"cases": ("exact float32 implicit",) * 2}, "cases must not repeat"),
    ({"cases": ("exact float32 half",)}, "gradient must be"),
  ],
)
def test_refused_settings(changes, message):
  debug = config.get_config("debug")
  debug.update_from_flattened_dict(changes)
  with refused(command_line.UsageError, message):
    command_line.to_settings(study.Settings, debug)


@pytest.mark.slow
def test_debug_run_goes_on_where_it_was(tmp_path):
  """From the command line; a case that has its row is not trained again."""
  name = "gradient_study"
  argv = [name, f"--config={command_line.CONFIGS}/{name}.py:debug"]
  (tmp_path / "run").mkdir()
  argv += [f"--workdir={tmp_path / 'run'}", "--resume"]

  def run():
    runner.main(
      name,
      study.Settings,
      study.study,
      argv=argv,
      prepare=study.prepare,
      resumable=True,
    )
    with (tmp_path / "run" / "losses.csv").open(newline="") as file:
      return list(csv.DictReader(file))

  rows = run()
  cases = config.get_config("debug").cases
  found = [(row["case"], int(row["seed"]), int(row["step"])) for row in rows]
  assert found == [(c, s, n) for c in cases for s in (0, 1) for n in (2, 4)]
  losses = np.array([float(row["loss"]) for row in rows]).reshape(2, 2, 2)
  assert abs(losses - np.log(264)).max() < 0.2
  # A seed starts where it does in every case; seeds differ.
  np.testing.assert_allclose(losses[0, :, 0], losses[1, :, 0], rtol=1e-3)
  assert abs(losses[:, 0] - losses[:, 1]).min() > 1e-4
  text = (tmp_path / "run" / "report.html").read_text()
  assert all(case in text for case in cases) and "<figure>" in text
  assert run() == rows
