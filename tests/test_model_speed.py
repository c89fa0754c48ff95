"""The study of whole models, tiny, and what it counts."""

import csv

import jax
import numpy as np
import pytest

from experiments.harness import command_line
from experiments.harness.speed import timing
from experiments.model_speed import passes, report, shapes, study
from neumann_jax import Execution

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.slow
@pytest.mark.parametrize(
  "passes", [("prefill",), ("train", "prefill", "decode")]
)
def test_debug_run(passes, tmp_path, capsys):
  study.main(
    [
      "model_speed",
      "--config=configs/model_speed.py:debug",
      f"--config.passes={passes}",
      f"--workdir={tmp_path / 'run'}",
    ]
  )
  with open(tmp_path / "run" / "models.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  assert tuple(dict.fromkeys(row["pass"] for row in rows)) == passes
  for row in rows:
    assert not row["note"]
    assert row["capacity"] in ("16", "64") or row["pass"] != "decode"
    assert 0 < float(row["lowest_ms"]) <= float(row["median_ms"])
    tokens = {"train": 64, "prefill": 64}.get(row["pass"], 2)
    rate = tokens / float(row["median_ms"]) * 1e3
    np.testing.assert_allclose(float(row["tokens_per_s"]), rate, rtol=1e-3)
    # No data sheet of a CPU.
    assert row["of_peak"] == "" and row["of_bandwidth"] == ""
  assert capsys.readouterr().out.rstrip().endswith("report.html")


def test_shapes_have_the_sizes_that_they_are_named_by():
  """Parameters without the input embedding, in units of 1e9."""
  for name, least, most in (
    ("Qwen3.5-0.8B", 0.7, 0.85),
    ("Qwen3.5-4B", 3.8, 4.4),
    ("Qwen3.5-9B", 7.5, 9.5),
  ):
    config = shapes.MODELS[name]
    # Stacked: a layer of a kind is looked at once.
    execution = Execution(param_dtype="bfloat16", scan_layers=True)
    model = passes.shapes.param_place.abstract_model(config, execution)
    cost = shapes.size(model)
    assert least < cost.weights / 1e9 < most, (name, cost)
    # Two bytes a weight, and vectors besides.
    assert 1 <= cost.bytes / (2 * cost.weights) < 1.001


def test_weights_are_drawn_once_and_remember():
  first, again = (
    shapes.model(shapes.MODELS["tiny"], Execution(), seed=3) for _ in range(2)
  )
  for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(x, y)
  assert (first.layers[0].linear_attn.A_log[...] == -3).all()
  assert 0.01 < first.layers[0].mlp.up_proj.kernel[...].std() < 0.03


def test_a_training_step_counts_its_attention(monkeypatch):
  """Three times 2 W T for the products, 2 T^2 H D for scores and values."""
  unchanged = lambda graph, rule, carried, text: (carried, text)  # noqa: E731
  monkeypatch.setattr(passes, "_step", unchanged)
  config = shapes.MODELS["tiny"]
  found = passes.train(config, Execution(), tokens=8, repeats=1, seed=0)
  weights = shapes.size(shapes.model(config, Execution(), 0)).weights
  width = config.num_attention_heads * config.head_dim  # of one layer
  assert found.flops == 3 * (2 * weights * 8 + 2 * 8**2 * width)


def test_a_decoded_row_counts_its_products_alone(monkeypatch):
  """Also where as many rows as there are tokens in the cache."""
  for name in ("start", "prefill"):
    monkeypatch.setattr(passes.decoding, name, lambda *_: (0,))
  asked = []
  monkeypatch.setattr(
    passes.decoding, "decode", lambda *args: asked.append(args[-1])
  )
  config, options = shapes.MODELS["tiny"], {"repeats": 1, "seed": 0}
  found = passes.decode(
    config, Execution(), rows=2, tokens=1, prompt=1, capacity=2, **options
  )
  weights = shapes.size(shapes.model(config, Execution(), 0)).weights
  assert found.flops == 2 * weights * 2
  # As `generate` asks: of every token whether it ends a row.
  stops = asked[0].stops
  assert (stops.shape, stops.dtype) == ((config.vocab_size,), bool)


def test_layers_are_scanned_by_the_depth_of_the_model_itself():
  config = command_line.parse(
    ["model_speed", "--config=configs/model_speed.py"], "model_speed"
  ).config
  with config.unlocked():
    config.models = ("tiny", "Qwen3.5-0.8B")
  settings = command_line.to_settings(study.Settings, config)
  assert settings.execution("Qwen3.5-0.8B", "train").scan_layers
  assert not settings.execution("tiny", "train").scan_layers
  assert not settings.execution("Qwen3.5-0.8B", "decode").scan_layers


def test_caches_have_room_for_what_is_asked():
  """Each capacity for each number of rows, 0 being what is needed."""
  config = command_line.parse(
    ["model_speed", "--config=configs/model_speed.py:debug"], "model_speed"
  ).config
  with config.unlocked():
    config.rows, config.capacities, config.scanned = (1, 3), (0, 20), True
  settings = command_line.to_settings(study.Settings, config)
  found = [
    (x["rows"], x["capacity"]) for x in study._options(settings, "decode")
  ]
  assert found == [(1, 16), (1, 20), (3, 16), (3, 20)]
  assert settings.execution("tiny", "decode").scan_layers
  assert not settings.execution("tiny", "prefill").scan_layers
  with config.unlocked():
    config.capacities = (15,)
  with pytest.raises(ValueError, match="prompt and written, 16 tokens, got 15"):
    command_line.to_settings(study.Settings, config)


def test_shares_are_of_the_data_sheet():
  found = passes.Measured(timing.of([0.5], 1), 100, 989e12 / 4, 4.8e12 / 8)
  shares = report.evaluated(found, "NVIDIA H200")
  assert shares == {"tokens_per_s": 200, "of_peak": 0.5, "of_bandwidth": 0.25}
  assert report.evaluated(found, "cpu")["of_peak"] is None
