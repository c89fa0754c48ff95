"""Low-rank adapters of a model's linear maps (LoRA, arXiv 2106.09685).

y = x W + s (x A) B with A [in, r], B [r, out] and s = alpha / r: W stays, A and
B are trained. B begins as zeros, so that the model begins as it was.
"""

import dataclasses
import math
from collections.abc import Iterator
from numbers import Real
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from neumann_jax.checks import plain_numbers
from neumann_jax.layers.linear import linear
from neumann_jax.model.language_model import LanguageModel
from neumann_jax.weight_quantization.quantized_model import (
  has_adapters,
  is_quantized,
)

ALL_LINEAR = "all-linear"
# The router is no linear map in transformers, and has none of PEFT's adapters.
_ROUTER = "gate"
# Qwen3-Next holds these two by two in one matrix, key head by key head: an
# adapter of that matrix is none of these.
_FUSED = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")


@dataclasses.dataclass(frozen=True)
class LoraSpec:
  """What is adapted, and how far.

  Attributes:
    rank: r, at least 1.
    alpha: the adapters count alpha / r, positive.
    targets: names of linear maps, as ("q_proj",); ("all-linear",), or the word
      alone, means all in the layers.
    use_rslora: whether they count alpha / sqrt(r) instead (arXiv 2312.03732).

  Raises:
    ValueError: for a value out of range.

  Example:
    >>> from neumann_jax import tuning
    >>> tuning.LoraSpec(rank=8, alpha=16.0).scale
    2.0
  """

  rank: int = 8
  alpha: float = 16.0
  targets: tuple[str, ...] | Literal["all-linear"] = (ALL_LINEAR,)
  use_rslora: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError for what cannot be."""
    plain_numbers(self)
    targets = (ALL_LINEAR,) if self.targets == ALL_LINEAR else self.targets
    if isinstance(targets, str):
      raise ValueError(
        f"targets must be a tuple of names, as ({targets!r},), or "
        f"{ALL_LINEAR!r}, got {targets!r}"
      )
    object.__setattr__(self, "targets", tuple(targets))
    if isinstance(self.rank, bool) or not isinstance(self.rank, int):
      raise ValueError(f"rank must be an integer, got {self.rank!r}")
    if self.rank < 1:
      raise ValueError(f"rank must be at least 1, got {self.rank}")
    if isinstance(self.alpha, bool) or not isinstance(self.alpha, Real):
      raise ValueError(f"alpha must be a number, got {self.alpha!r}")
    if not 0 < self.alpha < math.inf:
      raise ValueError(f"alpha must be positive and finite, got {self.alpha}")
    if not self.targets:
      raise ValueError(
        f"targets must name linear maps, or be ({ALL_LINEAR!r},), got none"
      )

  @property
  def scale(self) -> float:
    """What x A B is multiplied by."""
    root = math.sqrt(self.rank) if self.use_rslora else self.rank
    return self.alpha / root


class LoraLinear(nnx.Module):
  """A linear map and its adapter, [..., in] -> [..., out].

  The kernel keeps its place among the parameters of the model.

  Args:
    linear: what is adapted; its parameters are shared.
    spec: rank and scale.
    rngs: source of A, uniform within 1 / sqrt(in) as PEFT draws it.

  Attributes:
    kernel: W [in, out], or a stack of them for scanned layers.
    bias: [out], or None.
    lora_a: A [in, r] float32, or a stack.
    lora_b: B [r, out] float32, or a stack.
  """

  def __init__(
    self, linear: nnx.Linear, spec: LoraSpec, *, rngs: nnx.Rngs
  ) -> None:
    self.kernel, self.bias = linear.kernel, linear.bias
    self.spec = spec
    self.dtype = jnp.dtype(linear.dtype or linear.param_dtype)
    self.out_dtype = jnp.dtype(linear.preferred_element_type or self.dtype)
    *stack, rows, columns = linear.kernel.shape
    bound = rows**-0.5
    # float32 whatever W is: what is trained moves by less than bfloat16 shows.
    drawn = jax.random.uniform(
      rngs.params(),
      (*stack, rows, spec.rank),
      jnp.float32,
      minval=-bound,
      maxval=bound,
    )
    self.lora_a = nnx.LoRAParam(drawn)
    self.lora_b = nnx.LoRAParam(
      jnp.zeros((*stack, spec.rank, columns), jnp.float32)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., out]."""
    x = x.astype(self.dtype)
    y = self._product(x, self.kernel[...])
    low = self._product(x, self.lora_a[...]).astype(self.dtype)
    y = y + self.spec.scale * self._product(low, self.lora_b[...])
    return y if self.bias is None else y + self.bias[...].astype(y.dtype)

  def merged(self) -> jax.Array:
    """W + s A B in W's dtype, from a sum in float32."""
    kernel = self.kernel[...]
    low = jnp.matmul(
      self.lora_a[...], self.lora_b[...], precision=lax.Precision.HIGHEST
    )
    wide = kernel.astype(jnp.float32) + self.spec.scale * low
    return wide.astype(kernel.dtype)

  def _product(self, x: jax.Array, matrix: jax.Array) -> jax.Array:
    # HIGHEST, as `layers.linear`: float32 operands stay float32 on a TPU.
    return jnp.matmul(
      x,
      matrix.astype(self.dtype),
      precision=lax.Precision.HIGHEST,
      preferred_element_type=self.out_dtype,
    )


def add_adapters(
  model: LanguageModel, spec: LoraSpec, *, rngs: nnx.Rngs
) -> LanguageModel:
  """The model with adapters that change nothing yet.

  Works on separate and on scanned layers, on arrays and on shapes (inside
  `nnx.eval_shape`). Experts and routers are not adapted.

  Args:
    model: of linear maps as trained.
    spec: which, and how.
    rngs: source of the matrices A.

  Returns:
    A new model, which shares every array of the old one.

  Raises:
    ValueError: if the model has adapters or is quantised, or if it has no
      linear map of a name in `spec.targets`.

  Example:
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> from neumann_jax import tuning
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> spec = tuning.LoraSpec(rank=4, targets=("up_proj",))
    >>> adapted = tuning.add_adapters(model, spec, rngs=nnx.Rngs(1))
    >>> adapted.layers[0].mlp.up_proj.lora_a.shape
    (16, 4)
  """
  if is_quantized(model):
    raise ValueError(
      "model must have its weights as trained: quantised ones are not adapted; "
      "merge_adapters before quantize_weights"
    )
  if has_adapters(model):
    raise ValueError("model has adapters already: merge_adapters first")
  # A copy of the modules, which are then changed in place; arrays are shared.
  model = nnx.merge(*nnx.split(model))
  found = list(_linear_maps(model))
  names = {name for _, name, _ in found}
  _check_targets(spec, names)
  for owner, name, plain in found:
    if spec.targets == (ALL_LINEAR,) or name in spec.targets:
      setattr(owner, name, LoraLinear(plain, spec, rngs=rngs))
  return model


def merge_adapters(model: LanguageModel) -> LanguageModel:
  """The model with W + s A B in place of each adapted map, and no adapters.

  Args:
    model: of `add_adapters`.

  Returns:
    A new model, which shares the arrays that were not adapted.

  Raises:
    ValueError: if it has no adapters.
  """
  if not has_adapters(model):
    raise ValueError("model has no adapters: nothing is to be merged")
  model = nnx.merge(*nnx.split(model))
  for _, owner in list(nnx.iter_modules(model)):
    for name, child in list(vars(owner).items()):
      if isinstance(child, LoraLinear):
        setattr(owner, name, _plain(child))
  return model


def adapters(model: LanguageModel) -> list[LoraLinear]:
  """The adapted linear maps of a model."""
  modules = (module for _, module in nnx.iter_modules(model))
  return [module for module in modules if isinstance(module, LoraLinear)]


def _plain(adapted: LoraLinear) -> nnx.Linear:
  """The linear map that an adapted one is, its kernel merged."""
  # Made of shapes: what it would draw is replaced at once.
  plain = nnx.eval_shape(
    lambda: linear(
      *adapted.kernel.shape[-2:],
      rngs=nnx.Rngs(0),
      use_bias=adapted.bias is not None,
      dtype=adapted.dtype,
      param_dtype=adapted.kernel.dtype,
      wide=adapted.out_dtype != adapted.dtype,
    )
  )
  plain.kernel = nnx.Param(adapted.merged())
  plain.bias = adapted.bias
  return plain


def _linear_maps(
  model: LanguageModel,
) -> Iterator[tuple[nnx.Module, str, nnx.Linear]]:
  """(owner, name, map) of what may be adapted, in the layers of a model."""
  fused = _FUSED if model.config.model_type == "qwen3_next" else ()
  for layer in model.layers:
    for _, owner in list(nnx.iter_modules(layer)):
      for name, child in list(vars(owner).items()):
        known = isinstance(child, nnx.Linear)
        if known and name != _ROUTER and name not in fused:
          yield owner, name, child


def _check_targets(spec: LoraSpec, names: set[str]) -> None:
  if spec.targets == (ALL_LINEAR,) and names:
    return
  for name in spec.targets:
    if name not in names:
      raise ValueError(
        f"targets must be among the linear maps {', '.join(sorted(names))} of "
        f"this model or be ({ALL_LINEAR!r},), got {name!r}"
      )
