"""Feed-forward layers: SwiGLU, and sparse experts beside a shared one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from neumann_jax.delta_rule import on_mesh
from neumann_jax.execution import Execution
from neumann_jax.layers.grouped_product import grouped_product
from neumann_jax.layers.linear import linear
from neumann_jax.layers.one_token import row_products
from neumann_jax.model_config import ModelConfig


class Routing(NamedTuple):
  """Where a router sent its tokens, summed over them and over layers.

  Attributes:
    counts: [E] float32, tokens that each expert was chosen by.
    scores: [E] float32, sums of the softmax over all experts.
    tokens: scalar float32, how many tokens, once for each layer.
  """

  counts: jax.Array
  scores: jax.Array
  tokens: jax.Array


class SwiGLU(nnx.Module):
  """down(silu(gate(x)) * up(x)), [..., hidden] -> [..., hidden].

  Args:
    config: the architecture.
    execution: how it is computed.
    width: between the projections.
    rngs: source of the initial parameters.
  """

  def __init__(
    self,
    config: ModelConfig,
    execution: Execution,
    *,
    width: int,
    rngs: nnx.Rngs,
  ) -> None:
    make = functools.partial(
      linear,
      std=config.initializer_range,
      dtype=execution.dtype,
      param_dtype=execution.param_dtype,
      rngs=rngs,
    )
    self.set_execution(execution)
    self.gate_proj = make(config.hidden_size, width)
    self.up_proj = make(config.hidden_size, width)
    self.down_proj = make(width, config.hidden_size)

  def set_execution(self, execution: Execution) -> None:
    """Takes what computes products of a single row."""
    self.rows = execution.rule.implementation

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., hidden] -> [..., hidden]."""
    layers = self.gate_proj, self.up_proj
    gate, up = row_products.project(self.rows, x, layers)
    return row_products.gated(self.rows, gate, up, self.down_proj)


class Experts(nnx.Module):
  """E SwiGLU layers of one shape; each token goes through some of them.

  Args:
    config: the architecture.
    execution: how it is computed.
    rngs: source of the initial parameters.
  """

  def __init__(
    self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
  ) -> None:
    self.dtype, self.num_experts = execution.dtype, config.num_experts
    self.set_execution(execution)
    hidden, width = config.hidden_size, config.moe_intermediate_size
    init = nnx.initializers.normal(config.initializer_range)
    make = lambda *shape: nnx.Param(  # noqa: E731
      init(rngs.params(), (config.num_experts, *shape), execution.param_dtype)
    )
    self.gate_up_proj = make(hidden, 2 * width)  # [E, hidden, gate | up]
    self.down_proj = make(width, hidden)  # [E, width, hidden]

  def set_execution(self, execution: Execution) -> None:
    """Takes the mesh axes of rows and heads, as the rule has them."""
    self.batch_axes = execution.rule.batch_axes
    self.width_axis = execution.rule.head_axis

  def __call__(
    self, x: jax.Array, weights: jax.Array, chosen: jax.Array
  ) -> jax.Array:
    """The weighted sum of the chosen experts' outputs.

    Copies of the tokens are sorted by expert, so that every expert multiplies
    one contiguous group: no token is dropped, and none goes through an expert
    that it did not choose. On a mesh each device does so for its own tokens,
    and for its part of the width where the axis of heads divides it.

    Args:
      x: [M, hidden].
      weights: [M, K] float32.
      chosen: [M, K] int32, distinct experts of each token.

    Returns:
      [M, hidden] in x's dtype.

    Raises:
      ValueError: if M is a symbol of `jax.export`.
    """
    if not isinstance(x.shape[0], int):
      raise ValueError(
        "rows of a model with experts must be a number, as the blocks of its "
        f"products depend on it, got {x.shape[0]} tokens: no axis may be "
        "symbolic in jax.export"
      )
    graph, state = nnx.split(self)
    mesh = on_mesh.mesh_of(x, *jax.tree.leaves(state))
    free = on_mesh.free_axes(mesh)
    if mesh.size == 1 or not free:
      return self.sums(x, weights, chosen).astype(x.dtype)
    rows = on_mesh.row_axes(mesh, self.batch_axes, x.shape[0])
    axis, state, specs = self.divided(state, mesh)

    def run(state, x, weights, chosen):
      found = nnx.merge(graph, state).sums(x, weights, chosen)
      found = found if axis is None else lax.psum(found, axis)
      return found.astype(x.dtype)

    return on_mesh.spread(
      run,
      mesh=mesh,
      in_specs=(specs, P(rows), P(rows), P(rows)),
      out_specs=P(rows),
    )(state, x, weights, chosen)

  def sums(
    self, x: jax.Array, weights: jax.Array, chosen: jax.Array
  ) -> jax.Array:
    """`__call__` on one device, [M, hidden] float32."""
    count, k = chosen.shape
    # A stable sort, so that equal batches give equal sums, bit for bit.
    order = jnp.argsort(chosen.reshape(-1))  # [M K]
    token = order // k  # [M K], the token that each copy is of
    sizes = jnp.bincount(chosen.reshape(-1), length=self.num_experts)
    sizes = sizes.astype(jnp.int32)  # [E]; int64 under x64
    # Both projections in one product: its rows are read once.
    both = self.multiply("gate_up_proj", x[token], sizes)
    gate, up = jnp.split(both, 2, axis=-1)  # [M K, width] each
    out = self.multiply("down_proj", nnx.silu(gate) * up, sizes)
    # Weighted and summed in float32: K terms of either sign.
    out = out.astype(jnp.float32) * weights.reshape(-1)[order][:, None]
    return jax.ops.segment_sum(out, token, num_segments=count)

  def multiply(self, name: str, x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows sorted by expert times the matrix of their expert.

    Args:
      name: of the matrices, "gate_up_proj" or "down_proj".
      x: [M, in].
      sizes: [E] int32, how many rows each expert has.

    Returns:
      [M, out].
    """
    kernels = getattr(self, name)[...].astype(self.dtype)
    return grouped_product(x, kernels, sizes)

  def divided(
    self, state: nnx.State, mesh: AbstractMesh
  ) -> tuple[str | None, nnx.State, Any]:
    """How a mesh axis splits the width of the experts.

    Args:
      state: of these experts.
      mesh: that it lives on.

    Returns:
      The axis, or None where all devices have the whole width; the state as it
      is to be split; and the specs of its arrays.
    """
    axis = self.width_axis
    both: Any = state["gate_up_proj"]
    down: Any = state["down_proj"]
    if axis not in on_mesh.free_axes(mesh) or down.shape[1] % mesh.shape[axis]:
      return None, state, P()
    # Each device takes its columns of the gate and the same of the other half.
    columns = (2, mesh.shape[axis], -1)
    cut = both[...].reshape(*both.shape[:2], *columns).swapaxes(2, 3)
    state = nnx.State(
      {
        "gate_up_proj": both.replace(cut.reshape(both.shape)),
        "down_proj": down,
      }
    )
    specs = nnx.State(
      {
        "gate_up_proj": both.replace(P(None, None, axis)),
        "down_proj": down.replace(P(None, axis)),
      }
    )
    return axis, state, specs


class SparseExperts(nnx.Module):
  """K of E experts a token, and a gated expert that sees every token.

  Args:
    config: the architecture.
    execution: how it is computed.
    rngs: source of the initial parameters.
  """

  def __init__(
    self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs
  ) -> None:
    self.config, self.dtype = config, execution.dtype
    make = functools.partial(
      linear,
      std=config.initializer_range,
      dtype=execution.dtype,
      param_dtype=execution.param_dtype,
      rngs=rngs,
    )
    self.gate = make(config.hidden_size, config.num_experts)
    self.experts = Experts(config, execution, rngs=rngs)
    self.shared_expert = SwiGLU(
      config,
      execution,
      width=config.shared_expert_intermediate_size,
      rngs=rngs,
    )
    self.shared_expert_gate = make(config.hidden_size, 1)

  def set_execution(self, execution: Execution) -> None:
    """Hands the options on."""
    self.experts.set_execution(execution)
    self.shared_expert.set_execution(execution)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., hidden] -> [..., hidden]."""
    tokens = x.reshape(-1, x.shape[-1])
    out = self.experts(tokens, *self.route(tokens))
    opened = nnx.sigmoid(self.shared_expert_gate(tokens))
    return (out + opened * self.shared_expert(tokens)).reshape(x.shape)

  def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights [M, K] float32 and experts [M, K] int32 of [M, hidden]."""
    weights, chosen = lax.top_k(self.scores(x), self.config.num_experts_per_tok)
    # After the cut and not before: the softmax of all experts, then of these.
    if self.config.norm_topk_prob:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen

  def scores(self, x: jax.Array) -> jax.Array:
    """Softmax over all experts, [M, hidden] -> [M, E] float32."""
    # Float32 from here on: which experts come out on top must not depend on
    # the dtype of the activations more than it has to.
    return nnx.softmax(self.gate(x).astype(jnp.float32))

  def routing(self, x: jax.Array, counted: jax.Array) -> Routing:
    """Where the router sends the tokens that are counted.

    Args:
      x: [..., hidden], what a call reads.
      counted: [...] float32, 1 at tokens that count and 0 at padding.
    """
    scores = self.scores(x.reshape(-1, x.shape[-1]))  # [M, E]
    counted = counted.reshape(-1)  # [M]
    _, chosen = lax.top_k(scores, self.config.num_experts_per_tok)
    counts = jax.ops.segment_sum(
      jnp.repeat(counted, chosen.shape[1]),
      chosen.reshape(-1),
      num_segments=scores.shape[1],
    )
    total = jnp.sum(scores * counted[:, None], axis=0)
    return Routing(counts, total, jnp.sum(counted))
