"""The study of the whole rule's speed, where there is no GPU."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rule_speed as config
from experiments.harness import command_line
from experiments.rule_speed import contenders, problems, study, sweep
from neumann_jax import InverseSpec
from neumann_jax.delta_rule.recurrent import gated_delta_recurrent
from tests import oracles


def rows(folder, name):
  with open(folder / f"{name}.csv", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_debug_run_measures_ours_and_names_who_is_missing(tmp_path, capsys):
  study.main(
    [
      "rule_speed",
      "--config=configs/rule_speed.py:debug",
      f"--workdir={tmp_path / 'run'}",
      "--config.skip=('FlashQLA',)",
    ]
  )
  speed, errors = (rows(tmp_path / "run", x) for x in ("speed", "errors"))
  assert len(speed) == 4 * 2 * 2 and len(errors) == 4 * 2
  for row in speed + errors:
    ours = row["name"] == "neumann_jax"
    assert bool(row["note"]) != ours
    assert (row["note"] == "left out by skip") == (row["name"] == "FlashQLA")
  for row in speed:
    if row["name"] == "neumann_jax":
      assert 0 < float(row["lowest_ms"]) <= float(row["median_ms"])
      assert float(row["peak_mb"]) > 0
  for row in errors:
    if row["name"] == "neumann_jax":
      for column in problems.COLUMNS:
        assert 0 < float(row[column]) < 0.02
  (hard,) = rows(tmp_path / "run", "hard")[:1]
  assert int(hard["sequences"]) == 2 and hard["not_finite"] == "0"
  assert hard["calls"] == "2" and hard["different"] == "0"
  assert "jla is timed on CUDA devices only" in capsys.readouterr().out


def test_the_full_config_says_that_there_is_no_gpu(tmp_path, capsys):
  study.main(["rule_speed", f"--workdir={tmp_path / 'run'}"])
  assert "jax finds no GPU here" in capsys.readouterr().out
  assert not list(tmp_path.rglob("speed.*"))


def test_the_form_fla_has_its_shapes_and_fla_alone():
  given = config.get_config("fla")
  settings = command_line.to_settings(study.Settings, given)
  assert settings.shapes == config.FLA
  timed = [rule.name for rule in settings.rules()]
  assert [n for n in timed if n not in settings.skip] == ["neumann_jax", "fla"]


def test_errors_see_a_wrong_gradient():
  shape = problems.Shape(1, 64, 1, 2)
  problem = problems.draw(shape, dim=16, seed=0)
  truth = problems.exact(problem)
  rule = contenders.all_of(InverseSpec(), "xla")[0]
  prepared = rule.prepare(contenders.GRADIENTS, [problem])
  found = prepared.found(prepared.call(*prepared.inputs[0]))
  assert max(problems.errors(found, truth).values()) < 0.02
  found[4] = 1.5 * found[4]
  wrong = problems.errors(found, truth)
  assert wrong["dg"] == pytest.approx(0.5, rel=0.05)
  assert wrong["dbeta"] < 0.02


def test_sweep_counts_what_is_not_finite_and_what_differs():
  calls = iter([1.0, 1.0, 2.0, float("nan"), float("nan"), float("nan")])

  def prepare(problem):
    return lambda *fields: [fields[0] * 0 + next(calls)]

  kinds = [("identical", "0", 1.0)] * 2
  options = {"sequences": 10, "tokens": 8, "calls": 3}
  more = {"heads": problems.Shape(1, 1, 2, 4), "dim": 16, "seed": 0}
  fine, broken = sweep.swept(prepare, kinds, **options, **more)
  assert fine["sequences"] == broken["sequences"] == 8
  assert (fine["not_finite"], fine["different"]) == (0, 1)
  assert (broken["not_finite"], broken["different"]) == (2 * 8 * 2 * 16, 0)


@pytest.mark.parametrize("where", ["host", "device"])
def test_problems_are_reproducible_and_normalised(where):
  shape = problems.Shape(2, 32, 2, 4)
  if where == "host":
    draw = functools.partial(problems.draw, shape, gates="-0.25")
  else:
    draw = functools.partial(
      problems.on_device, shape, "independent", "-0.25", 1.0
    )
  x, y = (draw(dim=16, seed=3) for _ in range(2))
  assert all(jax.tree.map(lambda a, b: bool((a == b).all()), x, y))
  assert (np.asarray(x.log_decay) == -0.25).all()
  norms = np.linalg.norm(np.asarray(x.k, np.float32), axis=-1)
  np.testing.assert_allclose(norms, 1, atol=0.01)


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"implementation": "tpu"}, "implementation must be gpu or xla"),
    ({"shapes": ((1, 64, 2, 3),)}, "a shape must be"),
    ({"error_shape": (1, 64)}, "a shape must be"),
  ],
)
def test_refusals(change, sentence):
  given = dict(config.get_config("debug")) | change
  with oracles.refused(ValueError, sentence):
    study.Settings(**given)


def test_the_truth_of_grouped_heads_is_that_of_all_at_once():
  """Taken a key head at a time, with two value heads each."""
  problem = problems.draw(problems.Shape(1, 20, 2, 4), dim=8, seed=0)
  found = problems.exact(problem)
  with jax.enable_x64(True):
    *operands, do = (
      jnp.asarray(np.asarray(x.astype(jnp.float32), np.float64))
      for x in problem
    )
    out, pull = jax.vjp(lambda *x: gated_delta_recurrent(*x)[0], *operands)
    for x, y in zip(found, (out, *pull(do)), strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)
