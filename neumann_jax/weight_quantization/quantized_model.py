"""A language model whose linear maps are quantised after training."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from neumann_jax.layers.feed_forward import Experts
from neumann_jax.layers.grouped_product import grouped_product
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.weight_quantization.matrix import (
  QuantizedKernel,
  WeightQuantSpec,
)

# The router, the gate of the shared expert and the output matrix: small or
# decisive, and left alone by the usual recipes.
KEEP = ("gate", "shared_expert_gate", "lm_head")


class QuantizedLinear(nnx.Module):
  """x times a quantised kernel, plus the bias that the linear map had.

  Args:
    linear: what is quantised.
    spec: how.
  """

  def __init__(self, linear: nnx.Linear, spec: WeightQuantSpec) -> None:
    self.kernel = QuantizedKernel(linear.kernel[...], spec)
    # Added in the dtype of the result, as `nnx.Linear` does.
    self.bias = linear.bias
    self.dtype = jnp.dtype(linear.dtype or linear.param_dtype)
    self.out_dtype = jnp.dtype(linear.preferred_element_type or self.dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., out]."""
    y = self.kernel.multiply(x.astype(self.dtype), self.out_dtype, _matmul)
    if self.bias is None:
      return y
    return y + self.bias[...].astype(y.dtype)


class QuantizedExperts(Experts):
  """Experts whose two stacks of matrices are quantised.

  Args:
    experts: what is quantised.
    spec: how.
  """

  def __init__(self, experts: Experts, spec: WeightQuantSpec) -> None:
    self.dtype, self.num_experts = experts.dtype, experts.num_experts
    self.batch_axes, self.width_axis = experts.batch_axes, experts.width_axis
    for name in ("gate_up_proj", "down_proj"):
      kernel = getattr(experts, name)[...]
      setattr(self, name, QuantizedKernel(kernel, spec))

  def multiply(self, name: str, x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows x [M, in], sorted by expert, times the matrix of their expert."""
    # Each row of the result is scaled by its own expert's scales.
    dot = functools.partial(_grouped, sizes)
    expert = jnp.repeat(
      jnp.arange(self.num_experts), sizes, total_repeat_length=x.shape[0]
    )
    return getattr(self, name).multiply(
      x, self.dtype, dot, pick=lambda scale: scale[expert]
    )

  def divided(
    self, state: nnx.State, mesh: AbstractMesh
  ) -> tuple[None, nnx.State, P]:
    """Codes and scales are whole on every device."""
    del mesh
    return None, state, P()


def quantize_weights(
  model: LanguageModel,
  spec: WeightQuantSpec,
  *,
  keep: Sequence[str] = KEEP,
) -> LanguageModel:
  """The model with integer codes and scales in place of its linear maps.

  Rounding is to nearest: no calibration data, nothing is trained. Embeddings
  (also where they are the output matrix), norms, convolutions, A_log and
  dt_bias stay as they are. Works on separate and on scanned layers, inside
  `jax.jit` or outside; `with_execution` applies to the result.

  Args:
    model: with its linear maps as trained.
    spec: bits and groups.
    keep: names of linear maps that stay; the default is the router, the shared
      expert's gate and the output matrix.

  Returns:
    A new model, which shares every array that stays with the old one.

  Raises:
    TypeError: if `spec` is no WeightQuantSpec.
    ValueError: if the model is quantised already or has adapters, or if `keep`
      names what no model has.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax.weight_quantization import preset, quantize_weights
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> small = quantize_weights(model, preset("W8A8"))
    >>> small.layers[0].mlp.up_proj.kernel.codes[...].dtype
    dtype('int8')
  """
  if not isinstance(spec, WeightQuantSpec):
    raise TypeError(
      f"spec must be a WeightQuantSpec, as preset('W4A16'), got {spec!r}"
    )
  if has_adapters(model):
    raise ValueError("model must have no adapters: merge_adapters first")
  # A copy of the modules, which are then changed in place; arrays are shared.
  model = nnx.merge(*nnx.split(model))
  found = _linear_maps(model)
  _check_keep(keep, {name for _, name, _ in found})
  for owner, name, linear in found:
    if name in keep:
      continue
    if isinstance(linear, nnx.Linear):
      setattr(owner, name, QuantizedLinear(linear, spec))
    else:
      setattr(owner, name, QuantizedExperts(linear, spec))
  return model


def has_adapters(model: LanguageModel) -> bool:
  """Whether `tuning.add_adapters` made the model."""
  return bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))


def is_quantized(model: LanguageModel) -> bool:
  """Whether `quantize_weights` made the model."""
  return any(
    isinstance(node, QuantizedKernel) for _, node in nnx.iter_graph(model)
  )


def _linear_maps(
  model: LanguageModel,
) -> list[tuple[nnx.Module, str, nnx.Linear | Experts]]:
  """(owner, name, linear map or experts) all over the model."""
  nodes = [node for _, node in nnx.iter_graph(model)]
  if is_quantized(model):
    raise ValueError(
      "model is quantised already: quantise the weights as trained"
    )
  return [
    (node, name, child)
    for node in nodes
    if isinstance(node, nnx.Module)
    for name, child in vars(node).items()
    if isinstance(child, nnx.Linear | Experts)
  ]


def _check_keep(keep: Sequence[str], names: set[str]) -> None:
  known = sorted(names | set(KEEP))
  for name in (keep,) if isinstance(keep, str) else keep:
    if name not in known:
      raise ValueError(f"keep must be among {', '.join(known)}; got {name!r}")


# HIGHEST for what activations are left in floating point; products of integers
# are exact whatever it says.
def _matmul(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
  return jnp.matmul(
    x, kernel, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
  )


def _grouped(
  sizes: jax.Array, x: jax.Array, kernel: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  return grouped_product(x, kernel, sizes, dtype=dtype)
