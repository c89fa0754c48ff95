"""What the backward pass of a rematerialised layer runs again of the rule."""

import jax
import jax.numpy as jnp
import pytest

from neumann_jax import Execution, InverseSpec, ModelConfig, RuleOptions
from neumann_jax.checkpoint import params as param_place
from tests import oracles

FUSED = RuleOptions(fused=True, spec=InverseSpec(precision="float16"))
needs_mosaic = pytest.mark.skipif(
  jax.__version_info__ < (0, 11), reason="Mosaic GPU needs jax 0.11 for these"
)


def gradient(remat, rule, width, **options):
  """Loss and gradient of one layer, and the shapes that it takes."""
  config = ModelConfig(
    hidden_size=32,
    intermediate_size=32,
    vocab_size=32,
    num_hidden_layers=1,
    layer_types=("linear_attention",),
    linear_num_key_heads=1,
    linear_num_value_heads=1,
    linear_key_head_dim=width,
    linear_value_head_dim=width,
  )
  execution = Execution(rule=rule, remat=remat, **options)
  model = param_place.abstract_model(config, execution)

  def loss(params, tokens):
    hidden, _ = param_place.with_params(model, params).hidden_states(tokens)
    return jnp.sum(hidden.astype(jnp.float32) ** 2)

  tokens = jax.ShapeDtypeStruct((1, 256), jnp.int32)
  return jax.value_and_grad(loss), param_place.flat_params(model), tokens


def lowered(remat, rule, platform, width=128, **options):
  """Text of a program; what nothing reads of a jaxpr is gone from it."""
  call, *shapes = gradient(remat, rule, width, **options)
  return oracles.exported(call, platform, *shapes).mlir_module()


@pytest.mark.parametrize(
  "fused", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_in_xla_the_scan_over_chunks_runs_once_each_way(fused):
  rule = RuleOptions(fused=fused, implementation="xla")
  names, full = (
    lowered(remat, rule, "cpu", 16).count("stablehlo.while")
    for remat in ("names", "full")
  )
  assert (names, full) == ((3, 4) if fused else (2, 3))


def launches(remat, rule, platform="cuda"):
  module = lowered(remat, rule, platform, dtype=jnp.bfloat16)
  # On a TPU the layer's convolution and norms are kernels as well.
  of_rule = (
    'kernel_name = "neumann_rule' if platform == "tpu" else "custom_call @"
  )
  return module.count(of_rule)


@needs_mosaic
def test_on_a_hopper_gpu_every_kernel_is_launched_once():
  """The inverse, outputs, states, reverse and gradients."""
  assert launches("names", FUSED) == 5
  assert launches("full", FUSED) == 7


@pytest.mark.slow
def test_in_triton_the_scan_is_not_launched_again():
  """The kernel of u and w is: what the backward pass reads has no name."""
  rule = RuleOptions(32, FUSED.spec, True)
  assert (launches("names", rule), launches("full", rule)) == (3, 4)


@pytest.mark.slow
def test_on_a_tpu_the_forward_kernel_runs_once():
  rule = RuleOptions(fused=True, implementation="tpu")
  assert launches("names", rule, "tpu") == 2
  assert launches("full", rule, "tpu") == 3
