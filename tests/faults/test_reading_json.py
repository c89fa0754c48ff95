"""Configs, manifests and indices made to harm, and what messages repeat."""

import json
import math
import pathlib

import numpy as np
import pytest

from neumann_jax import checkpoint
from neumann_jax.checkpoint import hf_config, hf_layout, safetensors_io
from neumann_jax.generation import tokenizer as tokens
from posterior_jax import priors
from posterior_jax.foreign_files import json_file, messages
from posterior_jax.priors.checkpoints import diffusers_config, named_tensors
from tests.faults import kinds
from tests.faults.kinds import MARKED, check_message, edit
from tests.faults.spending import cheap
from tests.oracles import refused


@pytest.fixture
def model(tmp_path):
  return kinds.make(kinds.KINDS["config"], tmp_path)


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1024"),
    (
      {"num_hidden_layers": 1000, "layer_types": None},
      r"num_hidden_layers must be at most the \d+ tensors",
    ),
    ({"hidden_size": 10**12}, "hidden_size must be at most the .* numbers"),
    ({"head_dim": 2**40}, "head_dim must be at most the .* numbers"),
    ({"hidden_size": 10**30}, "hidden_size must be"),
    ({"hidden_size": 8.5}, "hidden_size must be an integer, got 8.5"),
    ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta must be a number"),
    ({"rope_parameters": [1]}, r"rope_parameters must be an object, got \[1\]"),
    ({"layer_types": [3, 4]}, "must be a string, got 3"),
    ({"layer_types": [MARKED] * 2}, r"layer_types .* got '\\x1b\[31mQQ"),
    ({"model_type": MARKED}, r"model_type must be one of"),
    ({"rms_norm_eps": math.nan}, "config.json is not JSON"),
    ({"initializer_range": math.inf}, "config.json is not JSON"),
    ({"vocab_size": {"a": [1] * 100_000}}, "vocab_size must be an integer"),
  ],
)
def test_configs_that_eat_the_machine(model, changes, pattern):
  edit(model / "config.json", **changes)
  with cheap(), refused(ValueError, pattern) as raised:
    checkpoint.load(model)
  check_message(raised, model)


@pytest.mark.parametrize(
  "family", [{"num_experts": 10**6}, {"num_experts": 10**9}]
)
def test_a_million_experts(tmp_path, family):
  """None is named before there are tensors for it."""
  said = hf_config.to_json(kinds.CONFIG, np.dtype("float32"))
  said |= {"model_type": "qwen3_next", "num_experts_per_tok": 2} | family
  said |= {"moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}
  shapes = {"model.norm.weight": (8,), "model.big": (10**6, 2)}
  config = hf_config.from_json(said)
  with cheap(seconds=4):  # a layer of each kind is described
    if family["num_experts"] > 10**7:
      with refused(ValueError, "num_experts must be at most the 2000008"):
        hf_config.check_held(config, shapes, "x")
    else:
      hf_config.check_held(config, shapes, "x")
      files = object.__new__(safetensors_io.Files)
      files.path, files.shapes = pathlib.Path("x"), shapes
      with refused(ValueError, "do not fit its config.json"):
        files.check(hf_layout.tensors(config), tied=False)


@pytest.mark.parametrize(
  ("text", "pattern"),
  [
    ("[" * 10**6 + "]" * 10**6, "nested more than 32 deep"),
    ('{"a":' * 500 + "1" + "}" * 500, "nested more than 32 deep"),
    ("1e999", "out of range"),
    ("-Infinity", "malformed"),
    ('"' + "x" * 3_000_000 + '"', "bytes, more than"),
    ("\xff", "malformed|UTF-8"),
    ("9" * 100_000, "out of range"),
    ("[" + "[]," * 300_000 + "[]]", None),
  ],
)
def test_json_is_small_shallow_and_finite(tmp_path, text, pattern):
  path = tmp_path / "a.json"
  path.write_text(text, encoding="latin-1")
  with cheap():
    if pattern is None:
      assert len(json_file.read(path)) == 300_001
    else:
      with refused(ValueError, pattern):
        json_file.read(path)


def test_an_index_names_no_more_than_models_have(model):
  index = model / safetensors_io.INDEX
  (model / safetensors_io.SINGLE).unlink()
  many = ",".join(f'"{i:x}":"a"' for i in range(700_000))
  index.write_text(f'{{"weight_map":{{{many}}}}}')
  with cheap(), refused(ValueError, "names more than 300000 tensors"):
    checkpoint.load(model)
  index.write_text('{"weight_map":{"a":' + "[" * 10**6 + "]" * 10**6 + "}}")
  with cheap(), refused(ValueError, "must be JSON with a weight_map"):
    checkpoint.load(model)


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    ({"layers_per_block": 2000}, "blocks must be at most the .* tensors"),
    ({"block_out_channels": [2**40] * 3}, "must be at most the .* numbers"),
    ({"norm_eps": -1.0}, "norm_eps lie in"),
    ({"block_out_channels": ["8", 16]}, 'must be an integer, got "8"'),
    ({"down_block_types": [MARKED] * 2}, "block types of config.json must"),
    ({MARKED: 1}, "which is not known here"),
    ({"attention_head_dim": -8}, "positive"),
  ],
)
def test_configs_of_diffusers_that_eat_the_machine(changes, pattern):
  folder = kinds.FIXTURES / "unets/diffusers_new"
  said = json.loads((folder / "config.json").read_text()) | changes
  held = {str(i): np.zeros((8, 8), np.float32) for i in range(100)}
  with cheap(), refused(ValueError, pattern) as raised:
    network = diffusers_config.read_network(said, priors.VP())
    named_tensors.check_held("a", held, network)
  check_message(raised, folder)


def test_schedules_are_typed_and_small():
  said = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
  for changes, pattern in (
    ({"num_train_timesteps": 10**9}, "steps must be at most 100000"),
    ({"beta_start": "x"}, "beta_start must be a number"),
    ({"beta_schedule": [1]}, "beta_schedule of DDPMScheduler"),
    ({"prediction_type": MARKED}, "prediction must be one of"),
  ):
    with cheap(), refused(ValueError, pattern) as raised:
      diffusers_config.read_schedule(said | changes)
    check_message(raised, "")


@pytest.mark.parametrize("which", ["prior", "model"])
def test_manifests_that_eat_the_machine(tmp_path, which):
  kind = kinds.KINDS[f"manifest ({which})"]
  folder = kinds.make(kind, tmp_path)
  said = json.loads((folder / "m.json").read_text())
  if which == "prior":
    field = "network"
    cases = [
      ({"blocks": [10**7]}, "blocks must be at most the .* tensors"),
      ({"embedding": 2**40}, "embedding must be at most the .* numbers"),
      ({"sigma_data": "x"}, "sigma_data must be a number"),
      (
        {"widths": [4] * 10**5, "blocks": [1] * 10**5},
        "at most the .* tensors",
      ),
    ]
  else:
    field = "config"
    cases = [
      ({"num_hidden_layers": 10**7, "layer_types": []}, "at most 1024"),
      ({"hidden_size": 2**40}, "hidden_size must be at most the .* numbers"),
      ({"model_type": MARKED}, "model_type of these .* must be one of"),
      ({"mlp_only_layers": [0] * 10**5}, "mlp_only_layers must be some of"),
    ]
  cases.append(({"Q" * 500: 1}, "has no field"))
  for changes, pattern in cases:
    (folder / "m.json").write_text(
      json.dumps(said | {field: said[field] | changes})
    )
    with cheap(), refused(ValueError, pattern) as raised:
      kind.load(folder)
    check_message(raised, folder)


def test_tokens_that_end_a_text_are_integers(tmp_path):
  folder = kinds.make(kinds.KINDS["generation_config"], tmp_path)
  file = folder / "generation_config.json"
  for value in (True, 1.5, math.nan, {"a": 1}, [[1]], 10**30, MARKED):
    edit(file, eos_token_id=value)
    pattern = "eos_token_id|no readable JSON"
    with cheap(), refused(ValueError, pattern) as raised:
      tokens.load_tokenizer(folder, 64)
    check_message(raised, folder)


def test_messages_repeat_little_and_nothing_that_a_terminal_obeys():
  assert messages.clean("a\nb\t c") == "a b c"
  assert messages.clean("\x1b]0;x\x07") == r"\x1b]0;x\x07"
  assert messages.clean("\u202e\x7f\ud800") == r"\u202e\x7f\ud800"
  for value in (
    MARKED,
    [MARKED],
    {MARKED: 1},
    10**4000,
    b"x" * 999,
    [[]] * 999,
  ):
    for said in (messages.shown(value), messages.as_json(value)):
      assert said.isprintable() and len(said) <= 85
