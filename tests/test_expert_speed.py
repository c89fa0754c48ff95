"""Decoding with 64 experts beside transformers, on the same CPU."""

import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax import Execution, checkpoint

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    any(importlib.util.find_spec(x) is None for x in ("torch", "transformers")),
    reason="needs torch and transformers",
  ),
]

CONFIG = {
  "hidden_size": 512,
  "num_experts": 64,
  "num_experts_per_tok": 8,
  "moe_intermediate_size": 256,
  "shared_expert_intermediate_size": 256,
}
PROMPT, STEPS = 64, 30


def decoding_times(folder):
  """Milliseconds of the fastest step of theirs and of ours, interleaved."""
  import torch

  from tests import make_qwen_fixtures as make

  theirs = make.random_model("qwen3_5_moe_text", **CONFIG)
  theirs.save_pretrained(folder)
  model = checkpoint.load(folder, Execution())
  tokens = np.random.default_rng(0).integers(0, 48, (1, PROMPT))
  graph, state = nnx.split(model)

  @jax.jit
  def call(state, tokens, cache):
    return nnx.merge(graph, state)(tokens, cache=cache)

  _, cache = call(state, jnp.asarray(tokens), model.init_cache(1, 256))
  with torch.no_grad():
    past = theirs(torch.tensor(tokens), use_cache=True).past_key_values
    one = torch.tensor(tokens[:, :1])
    times = {"theirs": [], "ours": []}
    for _ in range(STEPS):
      start = time.perf_counter()
      past = theirs(one, past_key_values=past, use_cache=True).past_key_values
      middle = time.perf_counter()
      logits, cache = call(state, jnp.asarray(tokens[:, :1]), cache)
      jax.block_until_ready(logits)
      times["theirs"].append(middle - start)
      times["ours"].append(time.perf_counter() - middle)
  return {name: 1e3 * min(some[3:]) for name, some in times.items()}


def test_a_step_takes_no_longer_than_theirs(tmp_path):
  found = decoding_times(tmp_path)
  assert found["ours"] <= found["theirs"], found
