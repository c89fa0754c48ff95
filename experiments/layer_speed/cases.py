"""What the study of the layer runs: a block, its rule and its inverse."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import neumann_jax
from experiments.harness.speed import timing
from experiments.inverse_speed import cases, wy_part
from neumann_jax import Execution, InverseSpec, ModelConfig, RuleOptions

EXACT = InverseSpec("exact")


class LayerCase(NamedTuple):
  """One inverse inside the layer."""

  name: str  # as configs write it
  spec: InverseSpec  # of the inverse
  fused: bool  # whether u and w come from one kernel
  implementation: str  # of the layer


class Inputs(NamedTuple):
  """What is timed at one length, each a list of input sets."""

  hidden: list[jax.Array]  # [1, T, hidden], what the block reads
  # q, k [1, T, Hk, Dk], v [1, T, Hv, Dv], gates [1, T, Hv] float32
  operands: list[tuple[jax.Array, ...]]
  matrices: list[jax.Array]  # [1, Hv, N, C, C] float32, what the rule inverts


def parse(name: str, chunk_size: int, implementation: str) -> LayerCase:
  """The case of a name "[xla | fused] NAME OF A SPEC", see `cases.parse`.

  "xla" keeps the whole layer in XLA. The exact solve has no kernel: it alone
  stays in XLA. ValueError for what is unknown or cannot run.
  """
  fused = name.startswith("fused ")
  inner = name.removeprefix("fused ")
  spec = cases.parse(inner.removeprefix("xla "), chunk_size, "xla").spec
  if inner.startswith("xla "):
    implementation = "xla"
  elif spec.method == "exact" and implementation == "gpu":
    implementation = "auto"
  RuleOptions(chunk_size, spec, implementation=implementation)  # refuses
  return LayerCase(name, spec, fused, implementation)


def block(
  settings: Any, case: LayerCase, dtype: jnp.dtype = jnp.bfloat16
) -> neumann_jax.GatedDeltaNet:
  """The layer with a case's inverse; weights in bfloat16, the same for all."""
  config = ModelConfig(
    hidden_size=settings.hidden,
    linear_num_key_heads=settings.key_heads,
    linear_num_value_heads=settings.value_heads,
    linear_key_head_dim=settings.dim,
    linear_value_head_dim=settings.dim,
    linear_conv_kernel_dim=settings.conv_width,
  )
  rule = RuleOptions(
    settings.chunk_size, case.spec, case.fused, case.implementation
  )
  execution = Execution(dtype=dtype, param_dtype=jnp.bfloat16, rule=rule)
  return neumann_jax.GatedDeltaNet(
    config, execution, decay_init="slow", rngs=nnx.Rngs(settings.seed)
  )


def run_block(
  settings: Any, case: LayerCase, dtype: jnp.dtype = jnp.bfloat16
) -> jax.stages.Wrapped:
  """The jitted prefill (parameters, x) -> (y, cache)."""
  shapes = nnx.eval_shape(lambda: block(settings, case, dtype))
  graph, _ = nnx.split(shapes)
  return jax.jit(lambda parameters, x: nnx.merge(graph, parameters)(x))


def run_rule(
  settings: Any, case: LayerCase, dtype: jnp.dtype = jnp.bfloat16
) -> jax.stages.Wrapped:
  """The jitted rule (q, k, v, log_decay, beta) -> (out, state)."""
  rule = functools.partial(
    neumann_jax.gated_delta_rule,
    chunk_size=settings.chunk_size,
    spec=case.spec,
    fused=case.fused,
    implementation=case.implementation,
  )

  @jax.jit
  def run(q, k, v, *gates):
    return rule(*(x.astype(dtype) for x in (q, k, v)), *gates)

  return run


def run_inverse(case: LayerCase) -> jax.stages.Wrapped:
  """The jitted inverse of the chunk matrices."""
  options: Any = {"spec": case.spec, "implementation": case.implementation}
  return jax.jit(functools.partial(neumann_jax.inverse, **options))


def draw(settings: Any) -> Inputs:
  """Input sets of the longest sequence; keys come from every key family."""
  tokens, c, dim = max(settings.tokens), settings.chunk_size, settings.dim
  hidden: list[jax.Array] = []
  operands: list[tuple[jax.Array, ...]] = []
  for i in range(timing.INPUT_SETS):
    seed = settings.seed + 3 * i
    shape = (1, tokens, settings.hidden)
    hidden.append(jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16))
    q, k = (
      wy_part.draw(seed + n, tokens, settings.key_heads, dim, c).k
      for n in (1, 2)
    )
    values = wy_part.draw(seed, tokens, settings.value_heads, dim, c)
    operands.append((q, k, *values[1:]))
  return Inputs(hidden, operands, [])


def first_tokens(settings: Any, inputs: Inputs, tokens: int) -> Inputs:
  """The first tokens of every input set, and the matrices of their chunks."""

  @jax.jit
  def matrices(k: jax.Array, log_decay: jax.Array, beta: jax.Array):
    return neumann_jax.chunk_matrices(
      k, log_decay, beta, chunk_size=settings.chunk_size
    ).a

  hidden = [x[:, :tokens] for x in inputs.hidden]
  operands = [tuple(x[:, :tokens] for x in one) for one in inputs.operands]
  found = [matrices(k, g, beta) for _, k, _, g, beta in operands]
  return jax.block_until_ready(Inputs(hidden, operands, found))
