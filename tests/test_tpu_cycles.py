"""Schedules read from dumps, the peers' arithmetic, and the command."""

import csv
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import key_families
from experiments.harness import runner
from experiments.peers import tpu
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import kernels, rules, schedule, study
from tests import oracles

SLOTS = """== CAPACTIY:
MXU, XLU, VALU
4 3 4
== UTILIZATION:
0 0 2
4 0 4
0 0 0
"""


def test_slots_by_unit():
  capacity, used = schedule.slot_use(SLOTS)
  assert capacity == {"MXU": 4, "XLU": 3, "VALU": 4}
  assert [row["VALU"] for row in used] == [2, 4, 0]


@pytest.mark.parametrize("text", ["", "== UTILIZATION:\n1 2\n"])
def test_slots_that_cannot_be_read_are_refused(text):
  with oracles.refused(schedule.ScheduleError, "slots in use cannot be"):
    schedule.slot_use(text)


def test_total_of_bundles():
  text = "Schedule analysis:\n\ttotal scheduled bundles:    214\n"
  assert schedule.total_bundles(text) == 214
  with oracles.refused(schedule.ScheduleError, "states no total"):
    schedule.total_bundles("nothing")


@pytest.mark.parametrize("peer", ["rows_in_lanes", "batch_in_lanes"])
def test_peers_are_right(peer):
  """C = 16: the same code, compiled in seconds."""
  a = np.concatenate(
    [
      key_families.draw(f, seed=0, count=1, chunk_size=16, beta=(0.6, 1.0)).a
      for f in key_families.FAMILIES
    ]
  )
  call = getattr(tpu, peer)
  found = np.asarray(call(jnp.asarray(a, jnp.float32), 8, interpret=True))
  truth = key_families.exact_inverse(a)
  error = key_families.relative_error(found, truth).max()
  assert error <= oracles.FLOAT32_INVERSE


@pytest.mark.parametrize(
  "override, sentence",
  [
    ("kinds=('v4',)", "kinds must be among v5e; v5p; v6e; 7x, got 'v4'"),
    ("kernels=('fast',)", "kernels must be among ladder bfloat16;"),
    ("batches=(12,)", "batches must be multiples of 8"),
    ("draws=0", "draws must be at least 1, got 0"),
    ("parts=('layer',)", "parts must be among inverse; rule, got 'layer'"),
    ("rules=('fast',)", "rules must be among ladder bfloat16, bfloat16"),
    ("shape=(1, 64, 2, 3)", "a whole multiple of the key heads, got"),
  ],
)
def test_refusals(override, sentence, tmp_path, capsys):
  argv = ["tpu_cycles", f"--config.{override}", f"--workdir={tmp_path / 'run'}"]
  with pytest.raises(SystemExit) as caught:
    study.main(argv)
  assert caught.value.code == 2
  assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
  "which, kernels",
  [
    (rules.FORWARD, {"neumann_rule_forward": 4}),
    (
      rules.GRADIENTS,
      {"neumann_rule_forward": 4, "neumann_rule_backward": 4 * 8},
    ),
  ],
)
def test_a_rules_kernels_are_found_with_their_steps(which, kernels):
  """A row of eight chunks of two key heads with two value heads is a step."""
  name = f"ladder bfloat16, bfloat16 operands, {which}"
  program = rules.program(name, Shape(4, 512, 2, 4))
  closed = jax.make_jaxpr(program.call)(*program.shapes)
  assert dict(rules.kernels(closed.jaxpr)) == kernels
  assert program.chunks == 4 * 8 * 4


def test_without_libtpu_one_sentence(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  study.main(
    [
      "tpu_cycles",
      f"--config={runner.CONFIGS / 'tpu_cycles.py'}:debug",
      f"--workdir={tmp_path / 'run'}",
    ]
  )
  assert "because libtpu is not installed here" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_debug_form(tmp_path, capsys):
  study.main(
    [
      "tpu_cycles",
      f"--config={runner.CONFIGS / 'tpu_cycles.py'}:debug",
      "--config.parts=('inverse', 'rule')",
      f"--workdir={tmp_path / 'run'}",
    ]
  )
  assert "compiled by libtpu" in capsys.readouterr().out
  with (tmp_path / "run/tpu_cycles.csv").open() as table:
    ours, other = (float(row["bundles"]) for row in csv.DictReader(table))
  assert 0 < ours < other
  with (tmp_path / "run/tpu_rules.csv").open() as table:
    found = {row["rule"]: row for row in csv.DictReader(table)}
  forward, both = (
    found[f"ladder bfloat16, bfloat16 operands, {which}"]
    for which in (rules.FORWARD, rules.GRADIENTS)
  )
  assert 0 < float(forward["bundles"]) < float(both["bundles"])
  assert float(forward["error_beta_2"]) < oracles.NARROW_RULE_ANY["bfloat16"]
  assert len(kernels.NAMES) == 11
