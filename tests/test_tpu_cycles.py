"""Schedules read from dumps, the peers' arithmetic, and the command."""

import csv
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.experimental.pallas import tpu as pltpu

import neumann_jax
from experiments.data import key_families
from experiments.harness import command_line
from experiments.harness.speed import timing
from experiments.peers import tpu, tpu_rules
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import (
  attached,
  compile_one,
  kernels,
  layer_part,
  layers,
  rule_errors,
  rules,
  schedule,
  study,
)
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
  found = np.asarray(call(jnp.asarray(np.float32(a)), 8, interpret=True))
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
    ("parts=('model',)", "parts must be among inverse; rule; layer, got 'mo"),
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
    pytest.param(
      *(rules.FORWARD, {"neumann_rule_forward": 4}), marks=pytest.mark.slow
    ),
    (
      rules.GRADIENTS,
      {"neumann_rule_forward": 4, "neumann_rule_backward": 4 * 4},
    ),
  ],
)
def test_a_rules_kernels_are_found_with_their_steps(which, kernels):
  """A row of eight chunks of two key heads with two value heads is a step.

  Backward, two chunks are.
  """
  name = f"ladder bfloat16, bfloat16 operands, {which}"
  program = rules.program(name, Shape(4, 512, 2, 4))
  closed = jax.make_jaxpr(program.call)(*program.shapes)
  assert dict(rules.kernels(closed.jaxpr)) == kernels
  assert program.chunks == 4 * 8 * 4


@pytest.mark.parametrize("name", rules.TOKENS)
def test_one_token_of_many_rows_is_a_program(name):
  """Sixteen states a step, whatever the tokens of the shape."""
  program = rules.program(name, Shape(4, 512, 2, 4))
  closed = jax.make_jaxpr(program.call)(*program.shapes)
  assert rules.kernels(closed.jaxpr) == [("neumann_rule_token", 128 * 4 // 16)]
  assert program.chunks == 128 * 4
  assert str(closed.out_avals[1].dtype) == rules.TOKENS[name]


def test_errors_of_one_token_after_the_other():
  wide, narrow = (
    rule_errors.errors(name, tokens=3, beta_max=2.0, seed=0)
    for name in rules.TOKENS
  )
  assert 0 < wide < narrow < oracles.NARROW_RULE_ANY["bfloat16"]


@pytest.mark.parametrize("name", tpu_rules.NAMES)
def test_a_package_that_is_missing_is_named(name, monkeypatch, tmp_path):
  def missing(module):
    raise ImportError(f"No module named {module!r}")

  monkeypatch.setattr(tpu_rules.importlib, "import_module", missing)
  one = Shape(1, 512, 2, 4)
  found = compile_one.measure_rule(name, one, None, tmp_path)
  package = "tokamax" if name == tpu_rules.TOKAMAX else "deltanet_tpu"
  assert found["reason"].startswith(f"No module named '{package}")
  two = compile_one.measure_rule(name, one._replace(rows=2), None, tmp_path)
  assert two["reason"] == f"{name} is compiled for one row, not 2"
  assert rule_errors.errors(name, tokens=64, beta_max=1.0, seed=0) is None


def test_packages_find_the_kind_of_tpu_that_is_compiled_for():
  device = types.SimpleNamespace(device_kind="TPU v6 lite")
  before = jax.default_backend()
  with tpu_rules.as_on(device):
    assert jax.default_backend() == "tpu"
    assert pltpu.get_tpu_info().generation == 6
  assert jax.default_backend() == before


def test_kernels_without_a_grid_count_their_own_loop(monkeypatch):
  """By what a name begins with, the first that fits; the others have grids."""
  monkeypatch.setattr(schedule, "written", lambda *_: 10)
  monkeypatch.setattr(
    schedule,
    "read",
    lambda *_: types.SimpleNamespace(bundles=7),
  )
  trips = {"rule_long": 64, "rule": 0}
  names = ("rule_long_b1", "rule_short", "other")
  found = [compile_one._bundles(None, name, 3, trips) for name in names]
  assert found == [640, 0, 21]


def test_without_libtpu_one_sentence(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(schedule, "has_compiler", lambda: False)
  study.main(
    [
      "tpu_cycles",
      f"--config={command_line.CONFIGS / 'tpu_cycles.py'}:debug",
      f"--workdir={tmp_path / 'run'}",
    ]
  )
  assert "because libtpu is not installed here" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(
  not schedule.has_compiler(), reason="libtpu is not installed"
)
def test_debug_form(tmp_path, capsys):
  study.main(
    [
      "tpu_cycles",
      f"--config={command_line.CONFIGS / 'tpu_cycles.py'}:debug",
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


@pytest.mark.parametrize("name, kind", [("TPU7x", "7x"), ("cpu", None)])
def test_what_is_predicted_is_that_of_the_attached_kind(
  name, kind, monkeypatch
):
  """Bundles over the rates; without a TPU, nothing is compiled."""
  asked = []

  def schedules(kind, _kernels, _batches, folder, names, shape):
    asked.append((kind, tuple(names), shape))
    yield {"begin": names[0], "batch": None}
    yield {"rule": names[0], "bundles": 1.35e6}

  monkeypatch.setattr(schedule, "schedules", schedules)
  monkeypatch.setattr(timing, "device_name", lambda: name)
  monkeypatch.setattr(schedule, "has_compiler", lambda: True)
  shape = Shape(1, 64, 1, 2)
  found = attached.predict(shape)
  said = attached.sentence(shape, found)
  if kind is None:
    assert not asked and found[:3] == (None, None, None)
    assert "predicted: no TPU among v5e, v5p, v6e, 7x is attached" in said
    return
  assert asked == [(kind, (attached.RULE,), shape)]
  assert found == attached.Prediction(
    kind, 1e3 * 1.35e6 / 1.35e9, 1e3 * 1.35e6 / 1.1e9, ""
  )
  assert said.endswith(f"; predicted for {kind}")


@pytest.mark.parametrize(
  "end, how",
  [("sys.exit('no such chip')", "no such"), ("os.abort()", "signal")],
)
def test_a_compiling_process_that_dies_leaves_what_is_measured(
  end, how, monkeypatch
):
  """It says so, and nothing is predicted; by a signal as by itself."""
  code = f'import os, sys; print(\'{{"begin": "r"}}\', flush=True); {end}'

  def schedules(kind, *given):
    return schedule._said(kind, [sys.executable, "-c", code], dict(os.environ))

  monkeypatch.setattr(schedule, "schedules", schedules)
  monkeypatch.setattr(timing, "device_name", lambda: "TPU7x")
  monkeypatch.setattr(schedule, "has_compiler", lambda: True)
  found = attached.predict(Shape(1, 64, 1, 2))
  assert found[:3] == ("7x", None, None)
  assert found.note.startswith(f"compiling for 7x stopped: {how}")


def test_nothing_is_predicted_without_a_compiler(monkeypatch):
  monkeypatch.setattr(timing, "device_name", lambda: "TPU7x")
  monkeypatch.setattr(schedule, "has_compiler", lambda: False)
  found = attached.predict(Shape(1, 64, 1, 2))
  assert (found.fast_ms, found.slow_ms) == (None, None)
  assert "libtpu is not installed" in attached.sentence((1, 64, 1, 2), found)


def test_three_forms_of_the_rule_are_timed(monkeypatch):
  """Each runs the same operands; a prediction stands by the kernels alone."""
  outputs = []

  def measure(call, inputs, **_):
    outputs.append(np.asarray(call(*inputs[0]), np.float32))
    return timing.of([0.002, 0.001, 0.003], 1)

  monkeypatch.setattr(timing, "measure", measure)
  measured = attached.measure(Shape(1, 64, 1, 2))
  assert len(outputs) == 3
  for found in outputs[:2]:  # roundings of bfloat16
    oracles.assert_close(found, outputs[2], 3e-2)
  predicted = attached.Prediction("v6e", 1.0, 1.5, "")
  assert next(iter(measured)) == attached.WITHOUT_KERNELS  # on this CPU
  columns = list(attached.table(measured, predicted))
  assert columns == ["form", "median ms", "lowest ms"]
  names = [attached.KERNELS, *list(measured)[1:]]  # as on a TPU
  measured = dict(zip(names, measured.values(), strict=True))
  table = attached.table(measured, predicted)
  assert list(table["median ms"]) == [2, 2, 2]
  assert list(table["lowest ms"]) == [1, 1, 1]
  assert table["predicted, at best"][0] == 1
  assert table["predicted, at worst"][0] == 1.5
  assert table["predicted, at best"][1:].isna().all()


@pytest.mark.parametrize(
  "platform, form",
  [("tpu", attached.KERNELS), ("cpu", attached.WITHOUT_KERNELS)],
)
def test_a_form_is_named_by_what_it_is_lowered_to(platform, form):
  shapes = rules.program(attached.RULE, Shape(1, 64, 1, 2)).shapes
  rule = jax.jit(lambda *x: neumann_jax.gated_delta_rule(*x, fused=True)[0])
  assert attached.form_of(rule, shapes, platform) == form


@pytest.mark.slow
@pytest.mark.skipif(
  not schedule.has_compiler(), reason="libtpu is not installed"
)
def test_devices_are_called_as_the_kinds_expect():
  """By libtpu's own description of each, in a process that may load it."""
  code = (
    "from experiments.tpu_cycles import compile_one, schedule\n"
    "for kind, name in schedule.TOPOLOGIES.items():\n"
    "  print(compile_one.device(name).device_kind, kind, sep='|')"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=schedule.ROOT,
    env=os.environ | schedule.ENVIRONMENT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line for line in done.stdout.splitlines() if "|" in line]
  assert dict(x.split("|") for x in lines) == attached.DEVICE_KINDS


LAYER = """
%body.3 (arg: f32[2]) -> f32[2] {
  %f.1 = f32[2] fusion(%p), metadata={op_name="jit(f)/while/body/add"}, \
backend_config={"estimated_cycles":"5"}
}

ENTRY %main.4 (x: f32[2]) -> f32[2] {
  %f.2 = f32[2] fusion(%x), metadata={op_name="jit(f)/dot_general"}, \
backend_config={"estimated_cycles":"100"}
  %f.3 = f32[2] fusion(%x), metadata={op_name="jit(f)/RULE/dot_general"}, \
backend_config={"estimated_cycles":"40"}
  %c = f32[2] copy(%x), backend_config={"estimated_cycles":"7"}
  %w = f32[2] while(%x), condition=%cond.2, body=%body.3, metadata={}
}
""".replace("RULE", layers.TRACED_RULE)


def test_a_layers_cycles_by_part():
  """The body of the loop over chunks counts as often as it runs."""
  found = layers.cycles(LAYER, 8)
  want = {layers.PRODUCTS: 100, layers.AROUND: 40 + 8 * 5, layers.REST: 7}
  assert found == want


def test_a_layer_that_cannot_be_counted_is_refused():
  with oracles.refused(schedule.ScheduleError, "states no estimated cycles"):
    layers.cycles(LAYER.replace("estimated_", ""), 8)
  nested = LAYER.replace(
    "%f.1 =", "%v = f32[2] while(%p), body=%body.9, metadata={}\n  %f.1 ="
  )
  with oracles.refused(schedule.ScheduleError, "a loop of the layer calls"):
    layers.cycles(nested, 8)
  unknown = LAYER.replace('"7"', f'"{2**63 - 1}"')
  with oracles.refused(schedule.ScheduleError, "expects no number of cycles"):
    layers.cycles(unknown, 8)


def test_the_share_of_the_inverse_and_what_the_layer_saves():
  """Two chunks of four heads: eight matrices, and bundles of a batch of 32."""
  slow, tokamax, fast = layer_part.INVERSES
  parts = {layers.PRODUCTS: 500, layers.AROUND: 400, layers.REST: 100}
  xla = {
    layers.INVERSE: {"cycles": parts},
    layers.RULE: {"cycles": parts | {layers.AROUND: 150}},
  }
  kernels = {
    slow: {"bundles": 4000},
    tokamax: {"reason": "tokamax is not installed"},
    fast: {"bundles": 400},
    layer_part.WHOLE_RULE: {"bundles": 210},
    rules.NORM: {"bundles": 20},
  }
  shape = Shape(1, 128, 2, 4)
  found = list(layer_part.compare("v6e", xla, kernels, shape))
  assert [row["inverse"] for row in found] == [
    slow,
    tokamax,
    fast,
    layer_part.WHOLE,
  ]
  assert found[1]["note"] == "tokamax is not installed"
  assert found[1]["share"] is None
  np.testing.assert_allclose(found[0]["share"], 1000 / 2000)
  np.testing.assert_allclose(found[2]["share"], 100 / 1100)
  np.testing.assert_allclose(found[3]["share"], 100 / 1000)
  saved = [found[i]["saved"] for i in (0, 2, 3)]
  np.testing.assert_allclose(saved, [0, 0.45, 0.5])
  np.testing.assert_allclose(found[3]["kernels"], 250 / 1e6)
  missing = {form: {"reason": "not known"} for form in xla}
  none = list(layer_part.compare("7x", missing, kernels, shape))
  assert all(row["note"] for row in none)
  for rows in (found, none):
    said = layer_part.closing(pd.DataFrame(rows))
    assert all(row["inverse"] in said for row in rows)


@pytest.mark.parametrize(
  "form, kernels",
  [
    pytest.param(
      *(layers.INVERSE, ["neumann_ladder_64"]), marks=pytest.mark.slow
    ),
    (
      layers.RULE,
      [
        "neumann_rms_forward",
        *(f"neumann_conv_{first}_forward" for first in (0, 1, 2)),
        "neumann_rule_forward",
        "neumann_norm_forward",
        "neumann_rms_forward",
      ],
    ),
  ],
)
def test_a_layer_holds_the_kernels_of_its_form(form, kernels):
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  call, arguments = layers.program(form, Shape(1, 128, 1, 2), where)
  traced = jax.jit(call).trace(*arguments)
  assert traced.out_info.shape == (1, 128, layers.WIDE)
  assert [name for name, _ in rules.kernels(traced.jaxpr.jaxpr)] == kernels
  # By this name `layers.cycles` finds operations of the rule.
  lowered = traced.lower(lowering_platforms=("tpu",))
  assert f"/{layers.TRACED_RULE}" in lowered.as_text(debug_info=True)
