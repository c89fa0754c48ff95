"""What a Qwen3.5 or Qwen3-Next text model is; `Execution` says how it runs."""

import dataclasses
import math

from neumann_jax.checks import plain_numbers
from neumann_jax.foreign_files.messages import shown
from neumann_jax.yarn import Yarn

# Model types of `transformers` that are text models. The first that allows the
# feed-forward layers of a config is what it is saved as.
FAMILIES = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
# Published models have up to 94 layers. A limit, because thirty bytes of a file
# can ask for any number, and layers are listed one by one.
MOST_LAYERS = 1024


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture of a hybrid text model, by the names of its `config.json`.

  The defaults are a dense model of the Qwen3.5 family at a small width.

  Attributes:
    model_type: the family whose checkpoints it has, one of `FAMILIES`; empty
      means the first one that allows its feed-forward layers.
    vocab_size: rows of the embedding.
    hidden_size: width of the residual stream.
    num_hidden_layers: depth, at most `MOST_LAYERS`.
    layer_types: "linear_attention" (Gated DeltaNet) or "full_attention" for
      every layer, or what else `model.decoder.MIXERS` knows: a model refuses
      other names. Empty means every fourth is full attention.
    intermediate_size: width of a dense feed-forward layer; 0 where there is
      none.
    num_attention_heads: query heads of full attention.
    num_key_value_heads: its key and value heads.
    head_dim: its width of a head.
    attention_bias: whether its projections have biases.
    rope_theta: base of the rotary frequencies.
    partial_rotary_factor: share of head_dim that is rotated.
    rope_scaling: stretches the rotary frequencies; None: they are plain.
    linear_num_key_heads: Hk of Gated DeltaNet.
    linear_num_value_heads: Hv.
    linear_key_head_dim: Dk.
    linear_value_head_dim: Dv.
    linear_conv_kernel_dim: W, taps of its short convolution.
    allow_neg_eigval: whether its write strength goes up to 2 instead of 1, so
      that a token can turn what the state holds around (arXiv 2411.12537).
    num_experts: of a sparse feed-forward layer; 0 for a dense model.
    num_experts_per_tok: experts that see a token.
    moe_intermediate_size: width of an expert.
    shared_expert_intermediate_size: width of the expert that sees all tokens.
    norm_topk_prob: whether the weights of the chosen experts add up to 1.
    mlp_only_layers: indices of layers that stay dense in a sparse model.
    decoder_sparse_step: every so many layers one is sparse.
    rms_norm_eps: of every norm.
    tie_word_embeddings: whether the embedding is the output matrix too.
    max_position_embeddings: longest sequence of training; not enforced.
    initializer_range: standard deviation of fresh weights.
    vision_language: whether the checkpoint's class is a vision-language one,
      inside of which this is the text model: adapters are named for it.

  Raises:
    ValueError: for a size out of range, or sizes that do not fit each other.

  Example:
    >>> import neumann_jax as nj
    >>> config = nj.ModelConfig(hidden_size=64, num_hidden_layers=8)
    >>> config.layer_types.count("full_attention"), config.period
    (2, 4)
    >>> nj.ModelConfig(hidden_size=0)
    Traceback (most recent call last):
      ...
    ValueError: hidden_size must be at least 1, got 0
  """

  model_type: str = ""
  vocab_size: int = 256
  hidden_size: int = 256
  num_hidden_layers: int = 4
  layer_types: tuple[str, ...] = ()
  intermediate_size: int = 768
  num_attention_heads: int = 4
  num_key_value_heads: int = 2
  head_dim: int = 64
  attention_bias: bool = False
  rope_theta: float = 1e7
  partial_rotary_factor: float = 0.25
  rope_scaling: Yarn | None = None
  linear_num_key_heads: int = 4
  linear_num_value_heads: int = 8
  linear_key_head_dim: int = 32
  linear_value_head_dim: int = 32
  linear_conv_kernel_dim: int = 4
  allow_neg_eigval: bool = False
  num_experts: int = 0
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  shared_expert_intermediate_size: int = 0
  norm_topk_prob: bool = True
  mlp_only_layers: tuple[int, ...] = ()
  decoder_sparse_step: int = 1
  rms_norm_eps: float = 1e-6
  tie_word_embeddings: bool = False
  max_position_embeddings: int = 32768
  initializer_range: float = 0.02
  vision_language: bool = False

  def __post_init__(self) -> None:
    """Fills in what is empty; raises ValueError for what does not fit."""
    plain_numbers(self)
    self._check_sizes()
    # Through `object`: what is empty is filled in once, and then it is frozen.
    if not self.layer_types:
      types = tuple(
        "linear_attention" if (i + 1) % 4 else "full_attention"
        for i in range(self.num_hidden_layers)
      )
      object.__setattr__(self, "layer_types", types)
    self._check_layers()
    possible = self._families()
    if not self.model_type:
      object.__setattr__(self, "model_type", possible[0])
    if self.model_type not in possible:
      raise ValueError(
        f"model_type of these feed-forward layers must be one of "
        f"{', '.join(possible)}, got {shown(self.model_type)}"
      )
    if self.vision_language and self.model_type == "qwen3_next":
      raise ValueError("vision_language must be False for qwen3_next, got True")

  @property
  def rotary_dim(self) -> int:
    """Components of a head that are rotated."""
    return int(self.head_dim * self.partial_rotary_factor)

  def is_sparse(self, index: int) -> bool:
    """Whether layer `index` has experts."""
    return (
      self.num_experts > 0
      and index not in self.mlp_only_layers
      and (index + 1) % self.decoder_sparse_step == 0
    )

  @property
  def period(self) -> int:
    """Layers after which the kinds of layers repeat."""
    depth = self.num_hidden_layers
    kinds = [(self.layer_types[i], self.is_sparse(i)) for i in range(depth)]
    return next(
      p
      for p in range(1, depth + 1)
      if depth % p == 0 and kinds == kinds[:p] * (depth // p)
    )

  def _families(self) -> tuple[str, ...]:
    """Families that allow its feed-forward layers."""
    sparse = [self.is_sparse(i) for i in range(self.num_hidden_layers)]
    # Of Qwen3.5 with experts, every layer has them and their weights add up to
    # 1: its config.json has no words for anything else.
    if self.num_experts == 0:
      return "qwen3_5_text", "qwen3_next"
    if all(sparse) and self.norm_topk_prob:
      return "qwen3_5_moe_text", "qwen3_next"
    return ("qwen3_next",)

  def _check_sizes(self) -> None:
    for name in (*SIZES, "decoder_sparse_step"):
      size = getattr(self, name)
      if not isinstance(size, int):
        raise ValueError(f"{name} must be an integer, got {size!r}")
      if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    if self.num_hidden_layers > MOST_LAYERS:
      raise ValueError(
        f"num_hidden_layers must be at most {MOST_LAYERS}, got "
        f"{self.num_hidden_layers}"
      )
    scaling = self.rope_scaling
    if scaling is not None and not isinstance(scaling, Yarn):
      raise ValueError(f"rope_scaling must be a Yarn or None, got {scaling!r}")
    for queries, keys in _GROUPS:
      if getattr(self, queries) % getattr(self, keys):
        raise ValueError(
          f"{queries} must be a whole multiple of {keys}, got "
          f"{getattr(self, queries)} and {getattr(self, keys)}"
        )
    for name in ("rms_norm_eps", "rope_theta"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(
          f"{name} must be positive and finite, got {getattr(self, name)}"
        )
    for name in ("partial_rotary_factor", "initializer_range"):
      if not math.isfinite(getattr(self, name)):
        raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
    # Components are rotated in pairs.
    if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
      raise ValueError(
        "head_dim * partial_rotary_factor must be even and in (0, head_dim], "
        f"got {self.head_dim} * {self.partial_rotary_factor}"
      )

  def _check_layers(self) -> None:
    if len(self.layer_types) != self.num_hidden_layers:
      raise ValueError(
        f"layer_types must name all {self.num_hidden_layers} layers, got "
        f"{len(self.layer_types)}"
      )
    if len(self.mlp_only_layers) > self.num_hidden_layers:
      raise ValueError(
        f"mlp_only_layers must be some of {self.num_hidden_layers} layers, got "
        f"{len(self.mlp_only_layers)} indices"
      )
    sparse = [self.is_sparse(i) for i in range(self.num_hidden_layers)]
    if not all(sparse) and self.intermediate_size < 1:
      raise ValueError(
        "intermediate_size must be at least 1 where a layer is dense, got "
        f"{self.intermediate_size}"
      )
    if any(sparse):
      for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if getattr(self, name) < 1:
          raise ValueError(
            f"{name} must be at least 1 where a layer has experts, got "
            f"{getattr(self, name)}"
          )
      if not 1 <= self.num_experts_per_tok <= self.num_experts:
        raise ValueError(
          f"num_experts_per_tok must be in [1, {self.num_experts}], got "
          f"{self.num_experts_per_tok}"
        )


# Of every architecture, as checkpoints name them.
SIZES = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "linear_num_key_heads",
  "linear_num_value_heads",
  "linear_key_head_dim",
  "linear_value_head_dim",
  "linear_conv_kernel_dim",
)
# Heads of the first read those of the second, equally many each.
_GROUPS = (
  ("num_attention_heads", "num_key_value_heads"),
  ("linear_num_value_heads", "linear_num_key_heads"),
)
