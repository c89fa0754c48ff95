"""The decoder layer, and which token mixer a layer type names."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
from flax import nnx

from neumann_jax.delta_rule.chunks.chunk_matrix import ChunkMatrices
from neumann_jax.execution import Execution
from neumann_jax.foreign_files.messages import shown
from neumann_jax.layers import residual_norm
from neumann_jax.layers.attention import GatedAttention
from neumann_jax.layers.caches.cache import LayerCache
from neumann_jax.layers.feed_forward import Routing, SparseExperts, SwiGLU
from neumann_jax.layers.gated_delta_net import GatedDeltaNet
from neumann_jax.layers.mixer import Mixer
from neumann_jax.layers.mixer import Tokens as Tokens
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.layers.one_kernel import row_layer
from neumann_jax.model_config import ModelConfig


class MixerKind(NamedTuple):
  """The mixer that a layer type names.

  Attributes:
    name: of the mixer in the layer and, with it, in a checkpoint.
    make: (config, execution, rngs=rngs) -> the mixer.
  """

  name: str
  make: Callable[..., Mixer[Any]]


# The mixer of every entry that `ModelConfig.layer_types` may have.
MIXERS: dict[str, MixerKind] = {
  "linear_attention": MixerKind("linear_attn", GatedDeltaNet),
  "full_attention": MixerKind("self_attn", GatedAttention),
}


class Ran(NamedTuple):
  """What a layer, or a stack of them, makes of its input.

  Attributes:
    x: [B, T, hidden].
    caches: the cache after the tokens, or one for each layer; None for None.
    routing: of the sparse layers, where it was asked for.
  """

  x: jax.Array
  caches: Any
  routing: Routing | None


class DecoderLayer(nnx.Module):
  """x + mixer(norm(x)), then x + feed_forward(norm(x)).

  Args:
    config: the architecture.
    execution: how it is computed.
    index: which of the model's layers.
    rngs: source of the initial parameters.
  """

  def __init__(
    self,
    config: ModelConfig,
    execution: Execution,
    index: int,
    *,
    rngs: nnx.Rngs,
  ) -> None:
    norm = functools.partial(
      RMSNorm,
      config.hidden_size,
      eps=config.rms_norm_eps,
      param_dtype=execution.param_dtype,
    )
    self.rule = execution.rule
    self.input_layernorm = norm()
    kind = MIXERS[config.layer_types[index]]
    self.mixer_name = kind.name
    setattr(self, kind.name, kind.make(config, execution, rngs=rngs))
    self.post_attention_layernorm = norm()
    self.mlp: SparseExperts | SwiGLU
    if config.is_sparse(index):
      self.mlp = SparseExperts(config, execution, rngs=rngs)
    else:
      self.mlp = SwiGLU(
        config, execution, width=config.intermediate_size, rngs=rngs
      )

  @property
  def mixer(self) -> Mixer[Any]:
    """The token mixer, which is an attribute of its name in a checkpoint."""
    return getattr(self, self.mixer_name)

  def set_execution(self, execution: Execution) -> None:
    """Changes how the layer is computed; see `Mixer`."""
    self.rule = execution.rule
    self.mixer.set_execution(execution)
    self.mlp.set_execution(execution)

  def __call__(
    self,
    x: jax.Array,
    tokens: Tokens,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    """[B, T, hidden] -> [B, T, hidden], and the cache (None for None)."""
    return self.run(x, tokens, cache)[:2]

  def run(
    self,
    x: jax.Array,
    tokens: Tokens,
    cache: LayerCache | None = None,
    counted: jax.Array | None = None,
  ) -> Ran:
    """A call that also says where the router sent the tokens.

    Args:
      x: [B, T, hidden].
      tokens: what is known of them.
      cache: before them, or None.
      counted: [B, T] float32, 1 at tokens whose routing is asked for; None: of
        none.
    """
    mixer, kept = self.mixer, cast(Any, cache)
    second = self.post_attention_layernorm, self.mlp
    # Where one kernel computes the layer, or what follows its attention.
    alone = counted is None and tokens.segment_ids is None
    if alone and tokens.mask is None:
      step = row_layer.whole(
        x, self.input_layernorm, mixer, *second, kept, tokens.positions
      )
      if step is not None:
        return Ran(*step, None)
    inner = residual_norm.normed(self.rule, self.input_layernorm, x)
    if alone and type(mixer) is GatedAttention:
      heads, new = mixer.before_output(inner, tokens, kept)
      end = row_layer.after_mixer(
        self.rule.implementation, x, heads, mixer.o_proj, *second
      )
      if end is not None:
        return Ran(end, None if cache is None else new, None)
      mixed = mixer.output(heads)
    else:
      mixed, new = mixer(inner, cache=kept, **tokens._asdict())
    x = x + mixed
    inner = residual_norm.normed(self.rule, self.post_attention_layernorm, x)
    routing = None
    if counted is not None and isinstance(self.mlp, SparseExperts):
      routing = self.mlp.routing(inner, counted)
    x = x + self.mlp(inner)
    return Ran(x, None if cache is None else new, routing)

  def chunk_matrices(
    self, x: jax.Array, tokens: Tokens
  ) -> ChunkMatrices | None:
    """What the layer inverts for x [B, T, hidden], or None if it does not."""
    return self.mixer.chunk_matrices(
      self.input_layernorm(x),
      segment_ids=tokens.segment_ids,
      mask=tokens.mask,
    )


def check_layer_types(types: Sequence[str]) -> None:
  """Raises ValueError for a layer type that names no mixer."""
  for kind in types:
    if kind not in tuple(MIXERS):  # a list out of a file has no hash
      raise ValueError(
        f"layer_types must be of {', '.join(MIXERS)}, got {shown(kind)}"
      )
