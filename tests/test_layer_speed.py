"""The study of the layer's speed, its debug form run to the end."""

import csv
import importlib
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.harness import command_line
from experiments.harness.reporting import tables
from experiments.harness.speed import timing
from experiments.layer_speed import cases, parts, report, study
from experiments.peers import gpu

CONFIG = "configs/layer_speed.py"
HARMLESS = "XLA_PYTHON_CLIENT_PREALLOCATE"


def settings(form="debug", **changes):
  config = importlib.import_module("configs.layer_speed").get_config(form)
  return command_line.to_settings(study.Settings, config.to_dict() | changes)


def test_the_full_form_is_the_published_layer():
  found = settings("")
  assert found.tokens == (8192, 16384, 32768, 65536)
  sizes = (found.hidden, found.key_heads, found.value_heads, found.dim)
  assert sizes == (4096, 16, 32, 128) and found.conv_width == 4
  assert found.cases()[0].spec.method == "exact"


@pytest.mark.parametrize(
  "form, changes, sentence",
  [
    ("debug", {"implementation": "tpu"}, "implementation must be gpu or xla"),
    ("debug", {"repeats": 0}, "repeats must be at least 1, got 0"),
    ("debug", {"tokens": ()}, "tokens must name at least one length"),
    ("debug", {"tokens": (40,)}, "tokens must be multiples of chunk_size = 16"),
    ("debug", {"specs": ()}, "specs must name at least one inverse"),
    ("debug", {"specs": ("fused",)}, "a spec is named"),
    ("debug", {"value_heads": 3}, "value_heads must be a whole multiple"),
    ("", {"tokens": (1024,)}, "a GPU's cache would be timed"),
    ("", {"chunk_size": 8}, "chunk size 8 is not one of"),
  ],
)
def test_bad_settings(form, changes, sentence):
  with pytest.raises(command_line.UsageError, match=sentence):
    settings(form, **changes)


def test_names_stand_for_cases():
  parse = cases.parse
  fused = parse("fused ladder float16", 64, "gpu")
  assert fused.fused and fused.implementation == "gpu"
  assert fused.spec == parse("ladder float16", 64, "gpu").spec
  assert parse("exact float32", 64, "gpu").implementation == "auto"
  assert parse("xla ladder float32", 64, "gpu").implementation == "xla"
  paper = parse("banded float16", 64, "gpu").spec
  assert (paper.order, paper.residual_steps) == (3, 8)


def test_error_is_relative_and_sees_what_is_not_finite():
  truth = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)))
  error = parts.error_of(truth * 1.01, truth)
  assert error == pytest.approx(0.01, rel=1e-3)
  assert parts.error_of(truth.at[0, 0].set(jnp.nan), truth) == np.inf


def test_a_failure_is_a_row_with_its_reason():
  def run():
    raise MemoryError

  job = timing.Job("exact", "gpu", run)
  found = parts._row(settings(), 64, "block", job)
  assert found["median_ms"] is None
  assert found["note"] == "failed, MemoryError: "
  said = report.closing(tables.frame([found]), settings())
  assert said.splitlines()[-1].endswith("failed, MemoryError:")


def run(monkeypatch, capsys, *arguments):
  monkeypatch.setenv(HARMLESS, os.environ.get(HARMLESS, "false"))
  study.main(["layer_speed", *map(str, arguments)])
  return capsys.readouterr().out


def test_no_gpu_is_one_sentence(monkeypatch, capsys, tmp_path):
  said = run(monkeypatch, capsys, f"--workdir={tmp_path / 'run'}")
  assert said.count("\n") == 1 and "jax finds no GPU here" in said
  assert not list(tmp_path.glob("run/*.csv"))


@pytest.mark.slow
def test_debug_form_end_to_end(monkeypatch, capsys, tmp_path):
  folder = tmp_path / "run"
  said = run(
    monkeypatch, capsys, f"--config={CONFIG}:debug", f"--workdir={folder}"
  )
  with (folder / "layer.csv").open(newline="") as file:
    rows = {(row["part"], row["name"]): row for row in csv.DictReader(file)}
  names = settings().specs
  for name in names:
    for part in parts.PARTS:
      if (part, name) == ("inverse", "fused ladder float16"):
        assert (part, name) not in rows
        continue
      row = rows[part, name]
      assert list(row) == [
        *("part", "name", "implementation", "tokens", "chunk_size", "device"),
        *("median_ms", "lowest_ms", "highest_ms", "calls"),
        *("share", "error", "memory_mb", "note"),
      ]
      low, mid, high = (
        float(row[f"{word}_ms"]) for word in ("lowest", "median", "highest")
      )
      assert 0 < low <= mid <= high and row["note"] == ""
      # Seven roundings to bfloat16 in the rule, as many around it.
      assert part == "inverse" or 1e-4 < float(row["error"]) < 3e-2
  exact = rows["inverse", names[0]]
  assert float(exact["share"]) == pytest.approx(
    float(exact["median_ms"]) / float(rows["block", names[0]]["median_ms"])
  )
  for key in (
    ("rule", parts.FLA),
    ("block", parts.TRANSFORMERS_FLA),
    ("block", parts.TRANSFORMERS),
  ):
    assert rows[key]["median_ms"] == "" and "CUDA" in rows[key]["note"]
  assert said.splitlines()[-1] == f"report: {folder / 'report.html'}"
  text = (folder / "report.html").read_text()
  assert text.count("<table") == text.count('class="measured"') == 2
  assert text.count("<figure>") == 1 and timing.TINY in text
  environment = json.loads((folder / "environment.json").read_text())
  assert environment["status"] == "finished"
  assert set(gpu.PACKAGES) <= set(environment["versions"])
