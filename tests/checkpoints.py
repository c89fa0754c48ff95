"""Small models and the directories they are saved in, for the tests."""

import functools
import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from neumann_jax import Execution, ModelConfig, checkpoint
from neumann_jax.checkpoint.params import (
  abstract_model,
  flat_params,
  with_params,
)

SMALL = {
  "vocab_size": 24,
  "hidden_size": 16,
  "num_hidden_layers": 8,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 16,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 6,
  "linear_key_head_dim": 4,
  "linear_value_head_dim": 5,
}
EXPERTS = {
  "num_experts": 3,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 6,
  "shared_expert_intermediate_size": 7,
}
CONFIGS = {
  "dense": ModelConfig(**SMALL, intermediate_size=20, tie_word_embeddings=True),
  "biased": ModelConfig(**SMALL, intermediate_size=20, attention_bias=True),
  "moe": ModelConfig(**SMALL, **EXPERTS, intermediate_size=0),
  "next": ModelConfig(
    **SMALL, **EXPERTS, intermediate_size=20, model_type="qwen3_next"
  ),
  "mixed": ModelConfig(
    **SMALL,
    **EXPERTS,
    intermediate_size=20,
    norm_topk_prob=False,
    mlp_only_layers=(1, 5),
    rope_theta=5e5,
    partial_rotary_factor=0.5,
  ),
}
SCANNED = Execution(scan_layers=True)
SINGLE = "model.safetensors"


@functools.lru_cache
def model_of(name, execution=Execution()):  # noqa: B008
  """Random parameters without a compilation."""
  model = abstract_model(CONFIGS[name], execution)
  rng = np.random.default_rng(0)
  return with_params(
    model,
    {
      path: jnp.asarray(rng.normal(size=x.shape), x.dtype)
      for path, x in flat_params(model).items()
    },
  )


def assert_same(found, want):
  """Two models agree in everything, bit by bit."""
  assert found.config == want.config
  assert found.execution == want.execution
  found, want = flat_params(found), flat_params(want)
  assert list(found) == list(want)
  for path, x in want.items():
    assert found[path].dtype == x.dtype, path
    np.testing.assert_array_equal(found[path], x)


def assert_free(model):
  """No parameter is bound to a device, as nothing was said of devices."""
  assert not any(x.committed for x in flat_params(model).values())


def saved(folder, name, **options):
  path = folder / name
  checkpoint.save(model_of(name), path, **options)
  return path


def tensors_in(path):
  return load_file(path / SINGLE)


def rewrite(path, tensors):
  save_file(tensors, path / SINGLE, metadata={"format": "pt"})


def edit_config(path, **changes):
  file = path / "config.json"
  config = json.loads(file.read_text()) | changes
  config = {key: value for key, value in config.items() if value is not ...}
  file.write_text(json.dumps(config))
