"""config.json: what it may leave out, and what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from neumann_jax import ModelConfig, Yarn, checkpoint
from neumann_jax.checkpoint.hf_config import from_json, to_json
from tests import oracles
from tests.checkpoints import CONFIGS, edit_config, saved


def test_legacy_and_defaulted_configs(tmp_path):
  path = saved(tmp_path, "moe")
  want = CONFIGS["moe"]
  edit_config(path, layer_types=..., rms_norm_eps=..., attention_bias=None)
  assert checkpoint.read_config(path) == want
  rope = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 10}
  edit_config(path, rope_parameters=rope)
  read = checkpoint.read_config(path)
  assert (read.rope_theta, read.partial_rotary_factor) == (10.0, 0.25)
  edit_config(path, rope_parameters=..., rope_theta=7, rope_scaling=None)
  edit_config(path, partial_rotary_factor=0.5, attn_output_gate=True)
  read = checkpoint.read_config(path)
  assert (read.rope_theta, read.partial_rotary_factor) == (7.0, 0.5)
  edit_config(path, full_attention_interval=2)
  kinds = checkpoint.read_config(path).layer_types
  assert kinds == ("linear_attention", "full_attention") * 4


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"model_type": "llama"}, "model_type must be one of .* got 'llama'"),
    ({"model_type": ...}, "model_type must be one of .* got None"),
    ({"model_type": "qwen3_5"}, "text_config must be an object"),
    (
      {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3"}},
      "model_type of text_config must be qwen3_5_text, got 'qwen3'",
    ),
    ({"hidden_act": "gelu"}, 'hidden_act must be "silu".*got "gelu"'),
    ({"attn_output_gate": False}, "attn_output_gate must be true"),
    ({"mamba_ssm_dtype": "bfloat16"}, 'mamba_ssm_dtype must be "float32"'),
    ({"norm_topk_prob": False}, "norm_topk_prob must be true"),
    ({"mlp_only_layers": [1]}, r"mlp_only_layers must be \[\]"),
    ({"quantization_config": {"bits": 8}}, "quantization_config must be abse"),
    (
      {"rope_parameters": {"rope_type": "dynamic", "factor": 4}},
      'rope_type must be "default" or "yarn", got "dynamic"',
    ),
    ({"rope_scaling": {"type": "linear"}}, 'rope_type must be .* got "linear"'),
    ({"head_dim": ...}, "a qwen3_5_moe_text model needs head_dim"),
    ({"hidden_size": "64"}, 'hidden_size must be an integer, got "64"'),
    ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a number, got true"),
    ({"rms_norm_eps": None}, "rms_norm_eps must be a number, got null"),
    ({"initializer_range": None}, "initializer_range must be a number, got nu"),
    (
      {"max_position_embeddings": None},
      "max_position_embeddings must be an in",
    ),
    ({"rope_theta": None, "rope_parameters": ...}, "rope_theta must be a numb"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ({"layer_types": ["mamba"] * 8}, "layer_types must be of .* got 'mamba'"),
    (
      {"layer_types": ..., "full_attention_interval": 0},
      "full_attention_interval must be at least 1",
    ),
    ({"num_experts": 0}, "intermediate_size must be at least 1 where a layer"),
  ],
)
def test_configs_refused(tmp_path, changes, sentence):
  path = saved(tmp_path, "moe")
  edit_config(path, **changes)
  with oracles.refused(ValueError, sentence):
    checkpoint.load(path)


@pytest.mark.parametrize("name", ["norm_topk_prob", "decoder_sparse_step"])
def test_null_is_no_default_of_routing(name):
  """A null that is false where it is read would have become true."""
  text = to_json(CONFIGS["next"], jnp.float32)
  assert from_json(text | {"mlp_only_layers": None}) == CONFIGS["next"]
  with oracles.refused(ValueError, f"{name} must be .*, got null"):
    from_json(text | {name: None})


def test_config_files_refused(tmp_path):
  with oracles.refused(FileNotFoundError, "names on a hub are not fetched"):
    checkpoint.load("Qwen/Qwen3.5-0.8B")
  with oracles.refused(TypeError, "execution must be an Execution, .* 'bf16'"):
    checkpoint.load(tmp_path, "bf16")
  with oracles.refused(TypeError, "execution must be an Execution, .* 'bf16'"):
    checkpoint.restore_orbax(tmp_path, "bf16")
  with oracles.refused(FileNotFoundError, r"path must hold a config\.json"):
    checkpoint.load(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": ')
  with oracles.refused(ValueError, r"config\.json is not JSON"):
    checkpoint.load(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with oracles.refused(ValueError, r"config\.json must hold a JSON object"):
    checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["moe", "next"])
def test_what_files_say_of_longer_sequences_and_of_gates(tmp_path, name):
  yarn = Yarn(4.0, 262144, mscale=1.0, mscale_all_dim=0.5, truncate=False)
  config = dataclasses.replace(
    CONFIGS[name], rope_scaling=yarn, allow_neg_eigval=True
  )
  found = json.loads(json.dumps(to_json(config, jnp.float32)))
  assert from_json(found) == config
  # transformers 4 has the dictionary under another name, without the base.
  rope = {"rope_type": "yarn", "factor": 2, "attention_factor": None}
  old = {"rope_scaling": rope, "rope_theta": 7, "max_position_embeddings": 99}
  read = from_json(
    {key: x for key, x in found.items() if key != "rope_parameters"} | old
  )
  assert read.rope_theta == 7
  assert read.rope_scaling == Yarn(2.0, original_max_position_embeddings=99)


def test_model_types():
  dense = ModelConfig()
  assert dense.model_type == "qwen3_5_text"
  assert CONFIGS["moe"].model_type == "qwen3_5_moe_text"
  assert CONFIGS["mixed"].model_type == "qwen3_next"
  for bad in ("qwen3_5_moe_text", "qwen3_5", "gpt"):
    with oracles.refused(ValueError, f"model_type .* got '{bad}'"):
      ModelConfig(model_type=bad)
