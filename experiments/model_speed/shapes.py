"""Shapes of published models, weights for them, and what a card can do."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neumann_jax import Execution, LanguageModel, ModelConfig
from neumann_jax.checkpoint import params as param_place

_qwen = functools.partial(
  ModelConfig,
  vocab_size=248320,
  head_dim=256,
  linear_num_key_heads=16,
  linear_num_value_heads=16,
  linear_key_head_dim=128,
  linear_value_head_dim=128,
)
# Sizes of their `config.json`.
MODELS = {
  "Qwen3.5-0.8B": _qwen(
    hidden_size=1024,
    num_hidden_layers=24,
    intermediate_size=3584,
    num_attention_heads=8,
    num_key_value_heads=2,
    tie_word_embeddings=True,
  ),
  "Qwen3.5-4B": _qwen(
    hidden_size=2560,
    num_hidden_layers=32,
    intermediate_size=9216,
    num_attention_heads=16,
    num_key_value_heads=4,
    linear_num_value_heads=32,
    tie_word_embeddings=True,
  ),
  "Qwen3.5-9B": _qwen(
    hidden_size=4096,
    num_hidden_layers=32,
    intermediate_size=12288,
    num_attention_heads=16,
    num_key_value_heads=4,
    linear_num_value_heads=32,
  ),
  # For a CPU.
  "small": ModelConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=8,
  ),
  # For the tests.
  "tiny": ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    intermediate_size=64,
    head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    tie_word_embeddings=True,
  ),
}


class Peak(NamedTuple):
  """What a card does at most, by its data sheet."""

  flops: float  # a second, products of bfloat16, dense
  bytes: float  # a second, of its memory


# By a part of what jax calls the device, the first that fits.
_PEAKS = {
  "H200": Peak(989e12, 4.8e12),
  "H100": Peak(989e12, 3.35e12),
  "A100": Peak(312e12, 2.04e12),
  "TPU v5 lite": Peak(197e12, 0.82e12),
  "TPU v6 lite": Peak(918e12, 1.64e12),
}


def peak(device_kind: str) -> Peak | None:
  """Of a device by the name that jax has for it; None where it is not known."""
  return next((p for n, p in _PEAKS.items() if n in device_kind), None)


def model(
  config: ModelConfig,  # the architecture
  execution: Execution,  # how it is computed
  seed: int,  # of the weights
) -> LanguageModel:
  """A model of random weights, drawn on the device.

  Decays are exp(-0.03) a token or so, as of a trained model: what a rule can
  leave out depends on them.
  """
  abstract = param_place.abstract_model(config, execution)
  key = jax.random.key(seed)
  drawn = {
    path: jnp.full(like.shape, -3, like.dtype)
    if path[-1] == "A_log"
    else _draw(jax.random.fold_in(key, i), like.shape, like.dtype)
    for i, (path, like) in enumerate(param_place.flat_params(abstract).items())
  }
  return param_place.with_params(abstract, drawn)


_draw: Any = jax.jit(
  lambda key, shape, dtype: 0.02 * jax.random.normal(key, shape, dtype),
  static_argnums=(1, 2),
)


# Parameters that multiply entries one by one.
_VECTORS = ("weight", "A_log", "dt_bias", "bias")


class Size(NamedTuple):
  """What every token costs, whatever computes it."""

  weights: int  # parameters that a token is multiplied with
  bytes: int  # of the parameters that a step of decoding reads


def size(model: LanguageModel) -> Size:
  """Of a dense model; the embedding counts where it is the output matrix."""
  weights = read = 0
  for path, x in param_place.flat_params(model).items():
    looked_up = path[0] == "embed_tokens"
    if looked_up and not model.config.tie_word_embeddings:
      continue
    read += math.prod(x.shape) * x.dtype.itemsize
    weights += 0 if path[-1] in _VECTORS else math.prod(x.shape)
  return Size(weights, read)
