"""The evaluation of a language model: scores, windows, resumption, refusals."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from configs import evaluate_lm as config
from experiments.data import key_families, text_windows
from experiments.evaluate_lm import inverse_errors, scores, study
from experiments.harness import command_line, runner
from experiments.harness.subjects import text_model
from neumann_jax import InverseSpec, checkpoint, generation
from neumann_jax.delta_rule.chunks.chunk_matrix import ChunkMatrices
from tests import oracles

ROOT = pathlib.Path(__file__).resolve().parents[1]
BYTES = generation.load_tokenizer(None, 256)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


class Head(nnx.Module):
  """An output matrix alone."""

  def __init__(self, matrix):
    self.matrix = nnx.Param(jnp.asarray(np.float32(matrix)))

  def logits(self, hidden):
    return hidden @ self.matrix[...]


@pytest.mark.parametrize("width", [2, 5, 150])
def test_scores_against_float64(width):
  rng = np.random.default_rng(width)
  matrix = rng.standard_normal((8, 31))
  hidden, reference = 2 * rng.standard_normal((2, 3, width, 8))
  tokens = rng.integers(0, 31, (3, width))
  mask = np.arange(width) < np.array([width, 2, 0])[:, None]
  hidden[~mask] = np.nan  # padding may hold anything
  every = scores.scores(
    *nnx.split(Head(matrix)),
    jnp.asarray(np.float32(hidden)),
    jnp.asarray(np.float32(reference)),
    jnp.asarray(tokens),
  )
  found = scores.totals(every, mask)
  truth = log_softmax(reference @ matrix)[:, :-1]
  own = log_softmax(hidden @ matrix)[:, :-1]
  real = mask[:, 1:]
  picked = np.take_along_axis(own, tokens[:, 1:, None], -1)[..., 0][real]
  divergence = (np.exp(truth) * (truth - own)).sum(-1)[real]
  assert found["tokens"] == real.sum() == len(picked)
  for name, want in (
    ("loss", -picked.sum()),
    ("divergence", divergence.sum()),
    ("largest", divergence.max()),
  ):
    np.testing.assert_allclose(found[name], want, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 7, 8, 9, 10])
def test_windows_hold_every_token_that_can_be_predicted(count):
  text = text_windows.Text("t", np.arange(1, count + 1, dtype=np.int32), count)
  found = text_windows.windows(text, 4)
  assert found.tokens.shape == found.mask.shape and found.mask[:, :2].all()
  kept = found.tokens[found.mask]
  assert (kept == text.tokens[: len(kept)]).all()
  assert len(kept) == (count - 1 if count == 9 else count)
  assert (found.tokens[~found.mask] == 0).all()


def test_text_and_its_bytes(tmp_path):
  path = tmp_path / "t.txt"
  path.write_text("\u00e4\u20acx")  # 2, 3 and 1 bytes
  whole = text_windows.read_text(str(path), BYTES, 0)
  assert (len(whole.tokens), whole.bytes, whole.name) == (6, 6, "t.txt")
  assert text_windows.read_text(str(path), BYTES, 3).bytes == 3
  words = BYTES._replace(
    name="words",
    encode=lambda text: np.arange(len(text), dtype=np.int32),
    decode=lambda ids: "\u00e4\u20acx"[: len(ids)],
  )
  assert text_windows.read_text(str(path), words, 2).bytes == 5
  library = text_windows.read_text("", BYTES, 0)
  assert library.bytes == len(library.tokens) > 100_000
  path.write_text("x")
  with oracles.refused(ValueError, "text must have at least 2 tokens, got 1"):
    text_windows.read_text(str(path), BYTES, 0)
  path.write_bytes(b"\xff\xfe")
  with oracles.refused(ValueError, "t.txt' is not UTF-8"):
    text_windows.read_text(str(path), BYTES, 0)
  with oracles.refused(ValueError, "none.txt' names no readable file"):
    text_windows.read_text(str(tmp_path / "none.txt"), BYTES, 0)


def settings(**changes):
  given = config.get_config("debug").to_dict()
  return command_line.to_settings(study.Settings, given | changes)


REFUSALS = {
  "unknown spec": ({"specs": ("lader float32",)}, "got 'lader float32'"),
  "no specs": ({"specs": ()}, "specs must be a tuple of at least one"),
  "a string": ({"weights": "none"}, "weights must be a tuple"),
  "no chunks": ({"chunk_sizes": ()}, "chunk_sizes must be a tuple"),
  "twice": ({"weights": ("W8", "W8")}, "weights must not repeat"),
  "weights": ({"weights": ("W3A16",)}, "weight quantisation is one of W4,"),
  "chunk": ({"chunk_sizes": (24,)}, "chunk_sizes must be a power of two"),
  "long chunk": (
    {"chunk_sizes": (128,)},
    "chunk_sizes must be at most the window's 64 tokens, got 128",
  ),
  "banded": (
    {"chunk_sizes": (8,), "specs": ("banded float16",)},
    "no default at chunk size 8",
  ),
  "window": ({"window": 1}, "window must be at least 2, got 1"),
  "dtype": ({"dtype": "float64"}, "dtype must be float32 or bfloat16"),
  "tolerance": ({"tolerance": 0.0}, "tolerance must be positive"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_settings_refuse(case):
  changes, words = REFUSALS[case]
  with pytest.raises(command_line.UsageError, match=words) as caught:
    settings(**changes)
  assert "\n" not in str(caught.value)


def test_files_are_refused_before_anything_is_made(tmp_path, capsys):
  short = tmp_path / "short.txt"
  short.write_text("ten bytes!")
  (tmp_path / "empty").mkdir()
  for arguments, words in (
    ([], "checkpoint must name a folder: give --config.checkpoint=DIR"),
    (["--config.checkpoint=none"], "checkpoint 'none' is not a folder"),
    ([f"--config.checkpoint={tmp_path / 'empty'}"], "config.json"),
    (
      ["--config.checkpoint=random", f"--config.text={short}"],
      "chunk_sizes must be at most the text's 10 tokens, got 64",
    ),
  ):
    with pytest.raises(SystemExit) as stop:
      run_main(tmp_path / "o", *arguments, form="")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


def run_main(workdir, *arguments, form=":debug"):
  runner.main(
    "evaluate_lm",
    study.Settings,
    study.evaluate_lm,
    [
      "evaluate_lm",
      f"--config={ROOT / 'configs/evaluate_lm.py'}{form}",
      f"--workdir={workdir}",
      *arguments,
    ],
    prepare=study.prepare,
    resumable=True,
  )


def test_layers_errors_certificates_and_plans():
  chunks = key_families.draw(
    "rank_4",
    seed=0,
    count=4,
    chunk_size=64,
  )
  part = ChunkMatrices(
    *(
      jnp.asarray(np.float32(x))[None, :, None]  # [1, Hv, 1, ...]
      for x in (chunks.a, chunks.beta, chunks.log_decay)
    )
  )
  specs = {
    "exact float32": InverseSpec("exact"),
    "banded float16": InverseSpec("banded", precision="float16"),
    "ladder bfloat16": InverseSpec("ladder", precision="bfloat16"),
  }
  rows = list(
    inverse_errors.layer_rows(
      (part, part),
      specs,
      weights="none",
      tolerance=0.01,
      implementation="xla",
    )
  )
  assert [(row["layer"], row["spec"]) for row in rows] == [
    (layer, name) for layer in (0, 1) for name in specs
  ]
  a = np.asarray(part.a[0, :, 0], np.float64)
  truth = np.linalg.inv(np.eye(64) + a)
  for row, spec in zip(rows, specs.values()):
    x = np.asarray(neumann_jax.inverse(part.a[0, :, 0], spec), np.float64)
    off = np.abs(x - truth).sum(-1).max()
    np.testing.assert_allclose(row["row_sum"], off, rtol=1e-3, atol=1e-6)
    assert row["row_sum"] <= row["certified"] and row["violations"] == 0
    assert row["matrices"] == 4 and row["chunk_size"] == 64
  exact, banded, ladder = (row["error"] for row in rows[:3])
  assert exact < 1e-5 < ladder < 0.05 < banded
  # 0.00239 tabulated for the refined ladder in bfloat16, 0.261 without.
  assert rows[2]["planned"] == "ladder refine"
  assert rows[2]["planned_products"] == 12


TINY = (
  "--config.max_tokens=70",
  "--config.chunk_sizes=(32,)",
  "--config.weights=('none',)",
  "--config.window=32",
  "--config.inverse_windows=2",
)
BANDED = "--config.specs=('banded float16',)"


def _rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
  tmp_path, monkeypatch, capsys
):
  real, calls = scores.scores, []

  def stopping(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return real(*arguments)

  workdir = tmp_path / "o"
  monkeypatch.setattr(scores, "scores", stopping)
  arguments = (*TINY, "--config.specs=('exact float32',)")
  with pytest.raises(SystemExit):  # in one sentence
    run_main(workdir, *arguments)
  assert len(_rows(workdir / "windows.jsonl")) == 1
  before = (workdir / "layers.csv").read_bytes()
  run_main(workdir, *arguments, "--resume")
  rows = _rows(workdir / "windows.jsonl")
  assert len(calls) - 2 == 1 and [row["batch"] for row in rows] == [0, 1]
  assert (workdir / "layers.csv").read_bytes() == before
  case = _rows(workdir / "cases.jsonl")[0]
  assert case["tokens"] == sum(row["tokens"] for row in rows) == 67
  report = (workdir / "report.html").read_text()
  for name in ("predictions-none", "worst-none-32", "layers-none-32"):
    assert f'id="{name}"' in report
  assert "data:image/png" in report and 'data-value="nan"' not in report
  assert f"report: {workdir / 'report.html'}" in capsys.readouterr().out


@pytest.mark.slow
def test_numbers_are_those_of_float64_logits(tmp_path):
  """Window by window, from the logits of the model itself."""
  run_main(tmp_path / "o", *TINY, BANDED)
  exact, found = _rows(tmp_path / "o/cases.jsonl")
  text = text_windows.read_text("", BYTES, 70).tokens
  model = text_model.random_model(
    text_model.random_config(),
    neumann_jax.Execution(
      rule=neumann_jax.RuleOptions(chunk_size=32, spec=InverseSpec("exact")),
      scan_layers=True,
    ),
    0,
  )
  loss, divergence, count = 0.0, 0.0, 0
  banded = model.with_execution(spec=InverseSpec("banded", precision="float16"))
  run = nnx.jit(lambda model, tokens: model(tokens)[0])
  for start in (0, 32, 64):
    tokens = np.pad(text, (0, 26))[None, start : start + 32]
    real = min(32, 70 - start) - 1
    own, other = (
      log_softmax(run(m, jnp.asarray(tokens)))[0, :real]
      for m in (model, banded)
    )
    loss -= own[np.arange(real), tokens[0, 1 : real + 1]].sum()
    divergence += (np.exp(own) * (own - other)).sum()
    count += real
  assert exact["tokens"] == found["tokens"] == count == 67
  np.testing.assert_allclose(
    exact["perplexity"], np.exp(loss / count), rtol=1e-5
  )
  np.testing.assert_allclose(
    exact["bits_per_byte"], loss / count / np.log(2), rtol=1e-5
  )
  assert exact["mean_kl"] == exact["max_kl"] == 0
  # Divergences of float32 logits: their rounding is about 1e-7.
  np.testing.assert_allclose(
    found["mean_kl"], divergence / count, rtol=1e-2, atol=2e-7
  )
  assert exact["products"] == 0 and found["products"] == 6


@pytest.mark.slow
def test_a_checkpoint_gives_the_numbers_of_the_model_it_holds(tmp_path, capsys):
  model = study.prepare(settings()).model
  checkpoint.save(model, tmp_path / "model")
  found = []
  for name in ("random", tmp_path / "model"):
    workdir = tmp_path / pathlib.Path(name).stem / "run"
    run_main(workdir, *TINY, BANDED, f"--config.checkpoint={name}")
    with open(workdir / "cases.csv") as file:
      found.append(
        [(row["spec"], row["perplexity"]) for row in csv.DictReader(file)]
      )
  assert found[0] == found[1]


@pytest.mark.slow
def test_debug_form_from_a_fresh_process(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.evaluate_lm",
      "--config=configs/evaluate_lm.py:debug",
      f"--workdir={tmp_path / 'o'}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  cases = _rows(tmp_path / "o/cases.jsonl")
  assert len(cases) == 2 * 2 * 3
  exact = {
    (row["weights"], row["chunk_size"]): row
    for row in cases
    if row["spec"] == "exact float32"
  }
  for row in cases:
    truth = exact[row["weights"], row["chunk_size"]]["perplexity"]
    assert abs(row["perplexity"] / truth - 1) < 0.02
    if row["spec"] == "ladder bfloat16":
      assert 1e-8 < row["mean_kl"] < 1e-4
  assert exact["none", 16]["perplexity"] != exact["W4A16", 16]["perplexity"]
  layers = _rows(tmp_path / "o/layers.jsonl")
  assert all(row["violations"] == 0 for row in layers)
  assert re.search(r"report: .*report.html", done.stdout)
