"""Small language models for the tests, with gates as training leaves them."""

import contextlib
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import neumann_jax

VOCABULARY = 64

_DENSE = neumann_jax.ModelConfig(
  vocab_size=VOCABULARY,
  hidden_size=64,
  num_hidden_layers=2,
  # One of each kind: every further layer is compiled once more.
  layer_types=("linear_attention", "full_attention"),
  intermediate_size=96,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=16,
  rope_theta=1e4,
  linear_num_key_heads=2,
  linear_num_value_heads=4,
  linear_key_head_dim=16,
  linear_value_head_dim=16,
  initializer_range=0.1,
)
CONFIGS = {
  "dense": _DENSE,
  "tied": dataclasses.replace(
    _DENSE, tie_word_embeddings=True, attention_bias=True
  ),
  "sparse": dataclasses.replace(
    _DENSE,
    model_type="qwen3_next",
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=48,
    mlp_only_layers=(1,),
  ),
  # Two periods of two layers, so that layers can be scanned.
  "deep": dataclasses.replace(
    _DENSE,
    num_hidden_layers=4,
    layer_types=("linear_attention", "full_attention") * 2,
  ),
}


@contextlib.contextmanager
def drawn_by_numpy():
  """Where models are made: jax compiles a program for a draw of every shape."""

  def by(made, deviation):
    def init(key, shape, *rest, **options):
      if isinstance(key, jax.core.Tracer):
        return made(key, shape, *rest, **options)
      dtype = rest[0] if rest else options["dtype"]
      rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
      drawn = deviation(shape) * rng.standard_normal(shape)
      return jnp.asarray(drawn.astype(dtype))

    return init

  normal, lecun = nnx.initializers.normal, nnx.initializers.lecun_normal
  with mock.patch.multiple(
    nnx.initializers,
    normal=lambda std: by(normal(std), lambda _: std),
    lecun_normal=lambda: by(lecun(), lambda shape: shape[-2] ** -0.5),
  ):
    yield


def make(kind, execution=None, seed=0):
  """A fresh model with chunks short enough to matter."""
  execution = execution or neumann_jax.Execution(
    rule=neumann_jax.RuleOptions(chunk_size=16)
  )
  with drawn_by_numpy():
    return neumann_jax.LanguageModel(
      CONFIGS[kind], execution, rngs=nnx.Rngs(seed)
    )


def trained_like(kind, execution=None, seed=0):
  """Decays that remember, and no parameter at its start of 0 or 1.

  A fresh block mostly forgets: its outputs are single products of queries and
  keys, which can cancel to anything, and the norm after them makes rounding
  errors of the whole.
  """
  model = make(kind, execution, seed)
  rng = np.random.default_rng(seed)
  for path, variable in nnx.to_flat_state(nnx.state(model)):
    value = variable[...]
    if path[-1] == "A_log":
      new = np.log(rng.uniform(0.001, 0.01, value.shape))
    elif path[-1] in ("dt_bias", "weight", "bias"):
      new = np.asarray(value) + rng.uniform(-0.3, 0.3, value.shape)
    else:
      continue
    variable[...] = jnp.asarray(new, value.dtype)
  return model


BLOCK = {
  "hidden_size": 24,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 6,
}


def delta_net(*, seed=0, decay_init="qwen", **options):
  """A small Gated DeltaNet block.

  Args:
    seed: of its parameters.
    decay_init: of A_log.
    **options: fields of ModelConfig, of Execution or of RuleOptions.
  """

  def own(kind):
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: options.pop(name) for name in names & set(options)}

  config = neumann_jax.ModelConfig(**BLOCK | own(neumann_jax.ModelConfig))
  rule = neumann_jax.RuleOptions(**own(neumann_jax.RuleOptions))
  execution = neumann_jax.Execution(rule=rule, **own(neumann_jax.Execution))
  assert not options, f"no such option: {options}"
  with drawn_by_numpy():
    return neumann_jax.GatedDeltaNet(
      config, execution, decay_init=decay_init, rngs=nnx.Rngs(seed)
    )
