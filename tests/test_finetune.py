"""Tuning: its step, its documents, its run; `test_finetune_parity` is slow."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import finetune as config
from experiments.data import packed_rows
from experiments.data.packed_rows import Document
from experiments.finetune import documents, step, study
from experiments.harness import command_line, record, runner
from experiments.harness.subjects import text_model
from experiments.harness.training import optimiser
from neumann_jax import (
  Execution,
  ModelConfig,
  RuleOptions,
  checkpoint,
  generation,
  sharding,
  tuning,
)
from tests import models, oracles
from tests.faults import small_runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
BYTES = generation.load_tokenizer(None, 256)
# One layer of attention: the least that has a step.
SMALL = ModelConfig(
  vocab_size=64,
  hidden_size=16,
  num_hidden_layers=1,
  layer_types=("full_attention",),
  intermediate_size=24,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
  partial_rotary_factor=0.5,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=8,
  linear_value_head_dim=8,
)
# Both kinds of layers, with experts.
SPARSE = dataclasses.replace(
  SMALL,
  model_type="",
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  num_experts=4,
  num_experts_per_tok=2,
  moe_intermediate_size=8,
  shared_expert_intermediate_size=8,
)
LINEAR = dataclasses.replace(SMALL, layer_types=("linear_attention",))
OPTIM = optimiser.OptimSettings(rate=1e-2, warmup=1)


def plan(**changes):
  execution = Execution(rule=RuleOptions(chunk_size=16))
  fields = {
    "config": SMALL,
    "execution": execution,
    "lora": None,
    "optim": OPTIM,
    "balance": 0.1,
    "vocab_block": 24,
  }
  return step.Plan(**fields | changes)


def params_of(plan, seed=0):
  rng = np.random.default_rng(seed)
  shapes = step.named(step.abstract_model(plan))
  return {
    name: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype)
    for name, x in shapes.items()
  }


def some_documents(*sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Document(rng.integers(0, 64, size, dtype=np.int32), rng.random(size) < 0.7)
    for size in sizes
  ]


@pytest.mark.parametrize("config", [SMALL, LINEAR])
def test_packed_rows_have_the_loss_of_unpacked_ones(config):
  given, how = some_documents(20, 13, 40, 9, 30, 17), plan(config=config)
  params = params_of(how)
  run = oracles.quick_jit(functools.partial(step.losses, plan=how))
  found = []
  for packed in (True, False):
    rows = packed_rows.pack(given, 48, packed=packed)
    # Rows are repeated up to six, so that both are one program.
    fresh = np.arange(6)[:, None] < len(rows.tokens)
    rows = rows.take(np.arange(6) % len(rows.tokens))
    found.append(run(params, rows._replace(wanted=rows.wanted & fresh)))
  assert found[0][1] == found[1][1] > 50
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)


@pytest.mark.slow
def test_packed_equals_unpacked():
  """Loss, gradient and balance of six documents in rows, and of each alone."""
  given, how = some_documents(20, 13, 40, 9, 30, 17), plan(config=SPARSE)
  params = params_of(how)

  def value(params, rows):
    total, count, balance = step.losses(params, rows, how)
    return total / count + balance, (total, count, balance)

  both = []
  for packed in (True, False):
    rows = packed_rows.pack(given, 48, packed=packed)
    assert len(rows.tokens) == (3 if packed else 6)
    run = oracles.quick_jit(jax.value_and_grad(value, has_aux=True))
    both.append(run(params, rows))
  for a, b in zip(*map(jax.tree.leaves, both)):
    scale = max(1.0, float(jnp.abs(b).max()))
    np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=0)
  gradient = both[0][1]
  assert all((x != 0).any() for x in gradient.values())


def test_a_step_moves_the_adapters_alone():
  """In a batch of bfloat16 products, from float32 masters."""
  lora = tuning.LoraSpec(rank=2, targets=("o_proj", "up_proj"))
  execution = Execution(
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
    rule=RuleOptions(chunk_size=16),
  )
  how = plan(lora=lora, execution=execution)
  params = params_of(how)
  tuned = {k: x for k, x in params.items() if step.is_tuned(k, how)}
  frozen = {k: x for k, x in params.items() if not step.is_tuned(k, how)}
  assert len(tuned) == 4 and all(x.dtype == jnp.float32 for x in tuned.values())
  assert frozen["embed_tokens.embedding"].dtype == jnp.bfloat16
  state = optimiser.init(tuned, OPTIM)
  rows = packed_rows.pack(some_documents(20, 13), 40, packed=True)
  before = jax.tree.map(np.asarray, tuned)
  after, info = step.make(how, state)(state, frozen, rows, jnp.float32(10))
  assert int(after.step) == 1 and int(info.tokens) == rows.wanted.sum()
  assert info.loss == info.token_loss and info.balance == 0
  for name, x in after.params.items():
    assert x.dtype == jnp.float32 and (x != before[name]).any(), name


def test_held_out_loss_counts_every_row_once(monkeypatch):
  """Of a model whose loss is the token."""

  def evaluate(params, rows):
    del params
    assert rows.tokens.shape[0] == 2
    return jnp.sum(jnp.where(rows.wanted, rows.tokens[:, 1:], 0)), jnp.sum(
      rows.wanted
    )

  monkeypatch.setattr(step, "make_evaluation", lambda plan: evaluate)
  rows = packed_rows.pack(some_documents(20, 13, 9), 24, packed=False)
  mean, count = step.mean_loss({}, rows, plan(), sharding.make_mesh(), 2)
  tokens = rows.tokens[:, 1:][rows.wanted]
  assert count == len(tokens)
  np.testing.assert_allclose(mean, tokens.mean(), rtol=1e-6)


# --- documents ----------------------------------------------------------------


def test_texts_and_conversations(tmp_path):
  lines = [
    {"text": "abcdefgh"},
    {"messages": [{"role": "assistant", "content": "xy"}], "tools": ["t"]},
  ]
  written = "\n\n".join(json.dumps(line) for line in lines)
  (tmp_path / "a.jsonl").write_text(written)
  (tmp_path / "b.txt").write_text("12345")
  (tmp_path / "c.png").write_text("no text")
  own = BYTES._replace(
    template="{{ tools[0] }}{% for m in messages %}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}",
    special={"eos_token": "."},
  )
  read = functools.partial(documents.read, tokenizer=own, turns="all")
  found = read(str(tmp_path), length=6)
  assert found[1:] == (2, 1, 0, 0)
  texts = [BYTES.decode(x.tokens) for x in found.documents]
  # Texts end in the eos_token and are cut into rows; the eos of a row of its
  # own predicts nothing.
  assert texts == ["abcdef", "gh.", "t:xy", "12345."]
  assert found.documents[2].wanted.tolist() == [False, False, True, True]
  found = read(str(tmp_path / "a.jsonl"), length=3)
  assert found.cut == 1 and BYTES.decode(found.documents[-1].tokens) == "t:x"


@pytest.mark.parametrize(
  "line, words",
  [
    ("{", "line 2 of .* is no JSON"),
    ('{"txt": 1}', "line 2 of .* must be an object with text or messages"),
    ('{"text": 1}', "line 2 of .*: text must be a string, got 1"),
    ('{"messages": "a"}', "line 2 of .*: messages must be a list of objects"),
    ('{"messages": []}', "line 2 of .*: the tokenizer bytes has no chat"),
    *(
      (f'{{"messages": [], "{name}": 1}}', f"line 2 of .*: {name} must not be")
      for name in documents.RESERVED
    ),
  ],
)
def test_lines_that_are_none(tmp_path, line, words):
  path = tmp_path / "a.jsonl"
  path.write_text(f'{{"text": "ab"}}\n{line}\n')
  with oracles.refused(ValueError, words):
    documents.read(str(path), BYTES, length=6, turns="all")


def test_documents_with_nothing_to_learn_are_counted(monkeypatch, tmp_path):
  """An empty text, the last token of one, an answer beyond the row's end."""
  # Drawing weights compiles for two seconds.
  monkeypatch.setattr(study, "_load", lambda *_: None)
  given = config.get_config("debug")
  path = tmp_path / "a.jsonl"
  lines = [{"text": x} for x in ("a" * 65, "", "ab")]
  path.write_text("\n".join(map(json.dumps, lines)))
  given.update_from_flattened_dict({"data": str(path), "length": 64})
  settings = command_line.to_settings(study.Settings, given)
  words = study.prepare(settings).words
  assert words.startswith(
    "3 texts and 0 conversations, 2 documents of which have nothing to learn, "
    "64 tokens to learn in 2 rows of 64"
  )
  chat = [{"role": "assistant", "content": "xy"}]
  path.write_text(json.dumps({"messages": chat, "tools": "a" * 70}))
  own = BYTES._replace(
    template="{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
  )
  with oracles.refused(ValueError, "has no token to be learned in 64"):
    documents.read(str(path), own, length=64, turns="all")


def test_places_that_are_none(tmp_path):
  (tmp_path / "a.png").write_text("")
  for place in (tmp_path, tmp_path / "a.png", tmp_path / "b.txt"):
    with oracles.refused(ValueError, "data must be a file that ends in .jsonl"):
      documents.files(str(place))


# --- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"tuning": "some"}, "tuning must be lora or full"),
    (
      {"tuning": "full", "execution.param_dtype": "bfloat16"},
      "execution.param_dtype must be float32 where all parameters are tuned",
    ),
    ({"tuning": "full", "merged": True}, "need tuning='lora', got 'full'"),
    ({"tuning": "full", "text_only": True}, "text_only needs tuning='lora'"),
    ({"rows": 3, "mesh.data": 2}, "rows must be a whole multiple of mesh.data"),
    ({"lora.rank": 0}, "rank must be at least 1, got 0"),
    ({"execution.remat": "some"}, "remat must be one of none, names, dots"),
    ({"mesh.fsdp": 16}, "needs 16 devices"),
  ],
)
def test_refused_settings(changes, words):
  given = config.get_config("debug")
  given.update_from_flattened_dict(changes)
  with pytest.raises(command_line.UsageError, match=words):
    command_line.to_settings(study.Settings, given)


def test_what_is_missing_is_said_before_anything_is_written(tmp_path, capsys):
  model = tmp_path / "model"
  checkpoint.save(models.make("dense"), model)
  for options, words in (
    ([], "data must name a file: give --config.data=FILE"),
    ([f"--config.data={tmp_path / 'none.txt'}"], "data must be a file"),
  ):
    argv = [
      "finetune",
      "--config=configs/finetune.py:debug",
      f"--config.checkpoint={model}",
      f"--workdir={tmp_path / 'run'}",
      *options,
    ]
    with pytest.raises(SystemExit) as left:
      runner.main(
        "finetune", study.Settings, study.finetune, argv, prepare=study.prepare
      )
    assert left.value.code == runner.USAGE
    assert words in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


# --- the run ------------------------------------------------------------------


def test_a_run_that_broke_off_goes_on_to_the_same_bits(tmp_path, monkeypatch):
  """Two steps of the command line, whole, and with a crash before the last."""
  text, make = tmp_path / "a.txt", step.make
  text.write_text("some words. " * 20)
  small = dataclasses.replace(SMALL, vocab_size=256)
  monkeypatch.setattr(text_model, "random_config", lambda: small)
  drawn = functools.cache(text_model.random_model)
  monkeypatch.setattr(text_model, "random_model", drawn)
  monkeypatch.setattr(study.report, "write", lambda *_, **__: None)
  monkeypatch.setattr(record, "_revision", lambda: None)
  # One program for all three runs: most of their time would be compilation.
  compiled = functools.cache(lambda plan: make(plan, states[0]))
  states, calls = [], []

  def remembered(plan, state):
    states.append(state)
    return lambda *given: calls.append(len(calls)) or compiled(plan)(*given)

  def breaking(plan, state):
    advance = remembered(plan, state)

    def one(state, *given):
      if int(state.step) == 1:
        raise RuntimeError("the machine is gone")
      return advance(state, *given)

    return one

  def main(name, make, *options):
    monkeypatch.setattr(step, "make", make)
    runner.main(
      "finetune",
      study.Settings,
      study.finetune,
      [
        "finetune",
        "--config=configs/finetune.py:debug",
        f"--config.data={text}",
        *("--config.steps=2", "--config.save_every=1", "--config.length=32"),
        *("--config.rows=2", f"--workdir={tmp_path / name}", *options),
      ],
      prepare=study.prepare,
      inputs=study.inputs,
      resumable=True,
    )
    return small_runs.results(tmp_path / name, steps=2)

  whole = main("whole", remembered)
  with pytest.raises(RuntimeError, match="the machine is gone"):
    main("part", breaking)
  assert len(calls) == 3
  assert main("part", remembered, "--resume") == whole and len(calls) == 4
  assert "adapter/adapter_model.safetensors" in whole


STEPS = 30
OPTIONS = (
  f"--config.steps={STEPS}",
  "--config.save_every=4",
  "--config.length=64",
)


def _command(path, *options):
  return [
    sys.executable,
    "-m",
    "experiments.finetune",
    "--config=configs/finetune.py:debug",
    *OPTIONS,
    *options,
    f"--workdir={path}",
  ]


def _lines(path):
  return path.read_bytes().count(b"\n") if path.exists() else 0


def _killed(path, *options, after):
  """The command with --resume, until it has so many rows."""
  process = subprocess.Popen(
    _command(path, *options, "--resume"), cwd=ROOT, stderr=subprocess.DEVNULL
  )
  while process.poll() is None and _lines(path / "training.jsonl") < after:
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_runs_go_on_bit_for_bit(tmp_path, kind):
  """Kill -9 at two points, drawn anew in every run of this test."""
  held_out = tmp_path / "held_out.txt"
  held_out.write_text((ROOT / "setup.py").read_text()[:2000])
  options = [f"--config.tuning={kind}", f"--config.held_out={held_out}"]
  whole, path = tmp_path / "whole", tmp_path / "run"
  done = subprocess.run(
    _command(whole, *options), cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  path.mkdir()
  seed = int.from_bytes(os.urandom(4))
  rng = np.random.default_rng(seed)
  for low, high in ((2, STEPS // 2), (STEPS // 2, STEPS - 1)):
    code = _killed(path, *options, after=int(rng.integers(low, high)))
    assert code == -signal.SIGKILL, seed
  done = subprocess.run(
    _command(path, *options, "--resume"), cwd=ROOT, capture_output=True
  )
  assert done.returncode == 0, (seed, done.stderr)
  for table in ("training", "held_out"):
    rows = [
      [json.loads(line) for line in (run / f"{table}.jsonl").open()]
      for run in (whole, path)
    ]
    for row in (*rows[0], *rows[1]):
      row.pop("seconds", None)
    assert rows[0] == rows[1], (seed, table)
  losses = [row["loss"] for row in rows[0]]
  assert losses[1] < losses[0]  # of the held-out text
  name = "adapter/adapter_model.safetensors"
  if kind == "full":
    name = "model/model.safetensors"
  assert (whole / name).read_bytes() == (path / name).read_bytes(), seed


@pytest.mark.slow
def test_a_run_leaves_what_it_says(tmp_path):
  """On a mesh, from adapters that were there, merged; then its report."""
  given = config.get_config("debug")
  given.update_from_flattened_dict({"steps": 2, "save_every": 2, "length": 64})
  with record.Run(tmp_path / "first") as run:
    study.finetune(
      study.prepare(command_line.to_settings(study.Settings, given)), run
    )
  adapter = tmp_path / "first/adapter"
  given.update_from_flattened_dict(
    {
      "adapters": str(adapter),
      "merged": True,
      "mesh.data": 2,
      "mesh.fsdp": 2,
      "execution.dtype": "bfloat16",
      "execution.param_dtype": "bfloat16",
      "execution.scan_layers": True,
      "execution.remat": "names",
    }
  )
  # jax's attention mixes dtypes in its backward pass.
  standard = jax.numpy_dtype_promotion("standard")
  with record.Run(tmp_path / "second") as run, standard:
    study.finetune(
      study.prepare(command_line.to_settings(study.Settings, given)), run
    )
  before, after = (
    load_file(tmp_path / name / "adapter/adapter_model.safetensors")
    for name in ("first", "second")
  )
  assert before.keys() == after.keys()
  moved = [np.abs(before[k] - after[k]).max() for k in before]
  assert 0 < max(moved) < 0.1
  model = checkpoint.load(tmp_path / "second/model")
  assert not tuning.adapters(model)
  report = (tmp_path / "second/report.html").read_text()
  assert report.count("<figure>") == 1 and 'id="held-out"' not in report
