"""The study of meshes, on eight virtual devices."""

import csv
import types

import pytest

from experiments.mesh_speed import probe, profile, report, study
from neumann_jax import Execution, ModelConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _run(folder, *overrides):
  study.main(
    [
      "mesh_speed",
      "--config=configs/mesh_speed.py:debug",
      f"--workdir={folder}",
      *overrides,
    ]
  )
  with open(folder / "meshes.csv", encoding="utf-8") as file:
    return {(x["name"], int(x["tokens"])): x for x in csv.DictReader(file)}


def _check(row):
  assert not row["note"]
  assert 0 < float(row["lowest_ms"]) <= float(row["median_ms"])
  assert float(row["loss_difference"]) < report.AGREE
  assert float(row["speed_up"]) > 0


@pytest.mark.slow
def test_a_step_on_a_mesh_is_that_of_one_device_and_compiles_once():
  config = ModelConfig(
    vocab_size=16,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
  )
  batch = probe.draw(config, 2, 16, seed=0)
  losses = []
  for name in ("one", "fsdp"):
    axes = probe.sizes(name, 2)
    made = probe.build(config, Execution(), axes, batch, rate=1e-2, seed=0)
    training = made.training
    for _ in range(2):
      training, loss = made.step(training, made.batch)
      losses.append(float(loss))
    assert made.step._cache_size() == 1
  assert losses[0] - losses[1] > 1e-3
  for one, split in zip(losses[:2], losses[2:]):
    assert abs(one - split) < report.AGREE * one


def test_what_does_not_divide_is_refused():
  config = ModelConfig(num_hidden_layers=1)
  batch = probe.draw(config, 3, 8, seed=0)
  with pytest.raises(ValueError, match="3 rows cannot be split over 2"):
    probe.build(config, Execution(), {"data": 2}, batch, rate=1e-2, seed=0)
  with pytest.raises(ValueError, match="8 tokens cannot be split over 3"):
    probe.build(config, Execution(), {"sequence": 3}, batch, rate=1e-2, seed=0)


@pytest.mark.slow
def test_debug_run(tmp_path, capsys):
  rows = _run(tmp_path / "run")
  assert len(rows) == 9
  for row in rows.values():
    _check(row)
  assert rows["data*tensor", 64]["devices"] == "8"
  assert (tmp_path / "run" / "report.html").exists()
  assert capsys.readouterr().out.rstrip().endswith("report.html")


@pytest.mark.parametrize(
  "name, devices, want",
  [
    ("one", 8, {"data": 1}),
    ("fsdp", 2, {"fsdp": 2}),
    ("fsdp", 1, None),
    ("data*tensor", 8, {"data": 2, "tensor": 4}),
    ("data*tensor", 2, None),
  ],
)
def test_axes_of_a_mesh(name, devices, want):
  assert probe.sizes(name, devices) == want


@pytest.mark.parametrize("name", ["", "rows", "data*data", "data*tensor*fsdp"])
def test_a_name_of_no_mesh_is_refused(name):
  with pytest.raises(ValueError, match="a mesh must be 'one', or one or two"):
    probe.sizes(name, 8)


def test_where_the_time_of_a_trace_went():
  def line(name, **events):
    made = [
      types.SimpleNamespace(name=x, duration_ns=t) for x, t in events.items()
    ]
    return types.SimpleNamespace(name=name, events=made)

  def plane(name, *lines):
    return types.SimpleNamespace(name=name, lines=lines)

  stream = line("Stream #1(compute)", gemm=60, ncclDevKernel_AllReduce=30)
  again = line("XLA Modules", jit_step=90)  # the same time once more
  host = plane("/host:CPU", line("Stream #1", python=1000))
  device = plane("/device:GPU:0", stream, again, line("Stream #2", copy=10))
  found = profile.waits([host, device])
  assert found.communication == 0.3
  assert found.longest[0] == ("gemm", 0.6)
  assert profile.waits([host]) is None
