"""A decoder layer of Qwen3.5-9B's shape on a TPU: what XLA's part of it takes.

libtpu writes into a compiled program how many cycles it expects each fusion to
take, transfers of HBM included. Of Pallas kernels it knows nothing: those have
their scheduled bundles, from `compile_one.measure` and `measure_rule`.
"""

import collections
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import rules, schedule
from neumann_jax import Execution, InverseSpec, ModelConfig, RuleOptions
from neumann_jax.delta_rule.chunks.by_chunks import by_chunks
from neumann_jax.layers.positions import positions
from neumann_jax.model.decoder import DecoderLayer, Tokens

INVERSE, RULE = "inverse in a kernel", "all between projections in kernels"
# form of the layer: whether u, w, state and output are in a kernel as well, and
# convolution and all norms in kernels beside it.
FORMS = {INVERSE: False, RULE: True}
PRODUCTS, AROUND, REST = "products with weights", "rule around it", "the rest"
# In the names of all operations that were traced in the rule.
TRACED_RULE = f"jit({inspect.unwrap(by_chunks).__name__})"
WIDE, FEED_FORWARD = rules.WIDE, 12288  # of Qwen3.5-9B
UNKNOWN = 2**62  # libtpu's infinity is 2^63 - 1
# Of what runs on a SparseCore, as copies on a 7x would, libtpu states that
# infinity: here they stay on the TensorCore, as they do on the other kinds.
OPTIONS = {
  "xla_tpu_enable_offloading_copy_to_sparsecore": False,
  "xla_tpu_enable_offloading_reshape_to_sparsecore": False,
}


def program(
  form: str, shape: Shape, sharding: jax.sharding.Sharding
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The layer of a form and its arguments as shapes.

  Args:
    form: among FORMS.
    shape: rows and tokens of the input, key and value heads of the layer.
    sharding: of the arguments.
  """
  config = ModelConfig(
    hidden_size=WIDE,
    num_hidden_layers=1,
    layer_types=("linear_attention",),
    intermediate_size=FEED_FORWARD,
    linear_num_key_heads=shape.key_heads,
    linear_num_value_heads=shape.value_heads,
    linear_key_head_dim=rules.WIDTH,
    linear_value_head_dim=rules.WIDTH,
  )
  rule = RuleOptions(
    chunk_size=rules.CHUNK_SIZE,
    spec=InverseSpec(precision="bfloat16"),
    fused=FORMS[form],
    implementation="tpu",
  )
  narrow = jnp.dtype(jnp.bfloat16)
  execution = Execution(dtype=narrow, param_dtype=narrow, rule=rule)
  graph, state = nnx.split(
    nnx.eval_shape(lambda: DecoderLayer(config, execution, 0, rngs=nnx.Rngs(0)))
  )
  placed = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )
  size = (shape.rows, shape.tokens, WIDE)
  x = jax.ShapeDtypeStruct(size, narrow, sharding=sharding)

  def call(state, x):
    tokens = Tokens(positions(*x.shape[:2]), None, None)
    return nnx.merge(graph, state)(x, tokens)[0]

  return call, (placed, x)


def cycles(text: str, chunks: int) -> dict[str, int]:
  """Cycles that libtpu expects of XLA's operations, by part of a layer.

  Args:
    text: of the compiled program.
    chunks: how often the body of a loop over chunks runs.

  Returns:
    PRODUCTS outside the rule, what is AROUND the kernels in the rule, and
    the REST: norms, gates, the convolution and copies.

  Raises:
    ScheduleError: a loop calls a loop, no operation says what it takes, or one
      says that it is not known.
  """
  bodies = set(re.findall(r" while\(.*?body=%?([\w.\-]+)", text))
  found: collections.Counter[str] = collections.Counter()
  inside = ""
  for line in text.splitlines():
    begins = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{", line)
    inside = begins[1] if begins else inside
    if " while(" in line and inside in bodies:
      raise schedule.ScheduleError("a loop of the layer calls another")
    expected = re.search(r'"estimated_cycles":"(\d+)"', line)
    if expected and int(expected[1]) >= UNKNOWN:
      raise schedule.ScheduleError(
        "libtpu expects no number of cycles for an operation of the layer"
      )
    if expected:
      name = re.search(r'op_name="([^"]*)"', line)
      runs = chunks if inside in bodies else 1
      part = _part(name[1] if name else "", inside in bodies)
      found[part] += int(expected[1]) * runs
  if not found:
    raise schedule.ScheduleError("the program states no estimated cycles")
  return {part: found[part] for part in (PRODUCTS, AROUND, REST)}


def _part(name: str, looped: bool) -> str:
  """Where an operation belongs by the functions that it was traced in."""
  if looped or TRACED_RULE in name:
    return AROUND
  return PRODUCTS if name.endswith("dot_general") else REST
