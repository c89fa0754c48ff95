"""The hybrid text model of Qwen3-Next and Qwen3.5 as a flax.nnx module.

Gated DeltaNet layers with a gated full attention layer every so often, each
followed by a SwiGLU or by sparse experts, all pre-norm. Parameters are named
as in a checkpoint: `layers/3/self_attn/q_proj/kernel` is its
`model.layers.3.self_attn.q_proj.weight`, transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax import checks
from neumann_jax.delta_rule.chunks.chunk_matrix import ChunkMatrices
from neumann_jax.execution import Execution, changed, check_execution
from neumann_jax.layers import residual_norm
from neumann_jax.layers.caches.cache import ModelCache
from neumann_jax.layers.caches.cache_tokens import added
from neumann_jax.layers.feed_forward import Routing
from neumann_jax.layers.norms import RMSNorm
from neumann_jax.model import call_inputs, vocabulary
from neumann_jax.model.decoder import Tokens
from neumann_jax.model.initial_keys import InitialKeys
from neumann_jax.model.layer_stack import make_layers, run_layers
from neumann_jax.model_config import ModelConfig


class LanguageModel(nnx.Module):
  """Qwen3.5 or Qwen3-Next text model, tokens [B, T] -> logits [B, T, V].

  Args:
    config: the architecture.
    execution: how it is computed.
    rngs: source of the initial parameters.

  Attributes:
    layers: one `DecoderLayer` each; with `execution.scan_layers` one for each
      layer of a period, whose parameters lead with the periods.

  Raises:
    ValueError: for an unknown layer type, or if layers are to be scanned but
      none repeat.

  Example:
    >>> import jax.numpy as jnp
    >>> import neumann_jax as nj
    >>> from flax import nnx
    >>> config = nj.ModelConfig(hidden_size=16, num_hidden_layers=1)
    >>> model = nj.LanguageModel(config, rngs=nnx.Rngs(0))
    >>> call = nnx.jit(lambda model, *args, **kw: model(*args, **kw))
    >>> logits, cache = call(
    ...   model, jnp.asarray([[1, 2, 3]]), cache=model.init_cache(1, 8)
    ... )
    >>> logits.shape, cache.stored.tolist()
    ((1, 3, 256), [3])
    >>> exact = model.with_execution(spec=nj.InverseSpec("exact"))
    >>> exact.execution.rule.spec.method
    'exact'
  """

  def __init__(
    self,
    config: ModelConfig,
    execution: Execution = Execution(),  # noqa: B008  (frozen)
    *,
    rngs: nnx.Rngs,
  ) -> None:
    check_execution(execution)
    self.config, self.execution = config, execution
    keys = InitialKeys(rngs)
    self.embed_tokens = vocabulary.embedding(config, execution, rngs=keys)
    self.layers = nnx.List(make_layers(config, execution, rngs=keys))
    self.norm = RMSNorm(
      config.hidden_size,
      eps=config.rms_norm_eps,
      param_dtype=execution.param_dtype,
    )
    # Where they are tied, the embedding is the output matrix, and one array.
    if not config.tie_word_embeddings:
      self.lm_head = vocabulary.output_matrix(config, execution, rngs=keys)
    keys.returned()

  def init_cache(self, batch: int, capacity: int) -> ModelCache:
    """The cache before the first token.

    Args:
      batch: B.
      capacity: S, tokens that a row may have in all. Only full attention
        needs room for them.

    Raises:
      ValueError: if either is below 1.
    """
    for name, value in (("batch", batch), ("capacity", capacity)):
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    # One a layer, or one a stack: `lax.scan` takes the periods' caches apart.
    caches = tuple(
      layer.mixer.init_cache(batch, capacity) for layer in self.layers
    )
    if self.execution.scan_layers:
      periods = self.config.num_hidden_layers // len(caches)
      caches = jax.tree.map(
        lambda x: jnp.zeros((periods, *x.shape), x.dtype), caches
      )
    # int32 by name: the default integer is int64 under x64, and a cache that
    # changes its type after a step would have the step compiled again.
    zero = jnp.zeros(batch, jnp.int32)  # [B]
    return ModelCache(caches, zero, zero)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    cache: ModelCache | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, ModelCache | None]:
    """Logits of the token after each one.

    Args:
      tokens: [B, T] integers in [0, V), T >= 1.
      cache: from `init_cache` or the call before; None for none.
      segment_ids: [B, T] integers, one of its own for each document of a row:
        packed documents that see nothing of each other. The cache enters the
        first document and goes on with the last; one of B M rows, M at least
        2, has a row for each of up to M documents of a row, in their order.
      mask: [B, T] bool or integers, nonzero at real tokens; padding, left of
        the first tokens or right of the last ones, is as if it were not there.

    Returns:
      logits [B, T, V] float32, of no meaning at padding, and the cache with
      the tokens added (None for None). In a compiled program a row that
      outgrows the cache's capacity gives NaN, and so does a document past the
      M-th.

    Raises:
      TypeError: if tokens are not integers.
      ValueError: for a shape or a value out of range (values are checked on
        concrete arrays only), or if both segment_ids and mask are given.
    """
    hidden, cache = self.hidden_states(
      tokens, cache=cache, segment_ids=segment_ids, mask=mask
    )
    return self.logits(hidden), cache

  def hidden_states(
    self,
    tokens: jax.Array,
    *,
    cache: ModelCache | None = None,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[jax.Array, ModelCache | None]:
    """What `logits` reads, [B, T, hidden]; arguments as for a call."""
    x, cache, _ = self._run(tokens, cache, segment_ids, mask, None)
    return x, cache

  def routed_hidden_states(
    self,
    tokens: jax.Array,
    *,
    counted: jax.Array,
    segment_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, Routing | None]:
    """`hidden_states`, and where the routers sent the tokens.

    Args:
      tokens: [B, T] integers in [0, V).
      counted: [B, T] float32 or bool, 1 at tokens whose routing counts, 0 at
        padding.
      segment_ids: [B, T] integers or None, as for a call.

    Returns:
      [B, T, hidden], and the routing summed over the sparse layers, None where
      there is none: what `tuning.balance_loss` reads.

    Raises:
      TypeError: if tokens are not integers, or for another type of `counted`.
      ValueError: as for a call, or for another shape of `counted`.
    """
    counted = call_inputs.marks_of(counted, tokens.shape)
    x, _, routing = self._run(tokens, None, segment_ids, None, counted)
    return x, routing

  def _run(
    self,
    tokens: jax.Array,
    cache: ModelCache | None,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
    counted: jax.Array | None,
  ) -> tuple[jax.Array, ModelCache | None, Routing | None]:
    known = self._known(tokens, cache, segment_ids, mask)
    x = vocabulary.embedded(self, tokens)  # [B, T, hidden]
    layers = None if cache is None else cache.layers
    x, caches, routing = run_layers(
      self.layers, self.execution, x, known, layers, counted
    )
    x = residual_norm.normed(self.execution.rule, self.norm, x)
    if cache is None:
      return x, None, routing
    # A compiled program cannot refuse a row that outgrows its cache: NaN is
    # seen, where a dropped key would be a wrong answer that nobody notices.
    cache, full = added(cache, caches, tokens.shape, *known)
    x = jnp.where(full[..., None], jnp.nan, x).astype(x.dtype)
    return x, cache, routing

  def logits(self, hidden: jax.Array) -> jax.Array:
    """[..., hidden] -> [..., V] float32."""
    return vocabulary.logits(self, hidden)

  def chunk_matrices(
    self,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    mask: jax.Array | None = None,
  ) -> tuple[ChunkMatrices, ...]:
    """The matrices that each Gated DeltaNet layer inverts, in their order.

    Args:
      tokens: [B, T], as for a call without a cache.
      segment_ids: [B, T] integers or None.
      mask: [B, T] or None.

    Returns:
      For each such layer a [B, Hv, N, C, C], its gates [B, Hv, N, C] and the
      longest key of each chunk [B, Hv, N].

    Raises:
      TypeError: if tokens are not integers.
      ValueError: as for a call, or if the layers are scanned.
    """
    if self.execution.scan_layers:
      raise ValueError(
        "chunk_matrices needs separate layers: use unstack_layers first"
      )
    known = self._known(tokens, None, segment_ids, mask)
    x, found = self.embed_tokens(tokens), []
    for layer in self.layers:
      matrices = layer.chunk_matrices(x, known)
      if matrices is not None:
        found.append(matrices)
      x, _ = layer(x, known)
    return tuple(found)

  def with_execution(self, **changes: Any) -> "LanguageModel":
    """The same parameters under another `Execution`.

    Args:
      **changes: the fields of `Execution` that are in its `CHANGEABLE`; a field
        of `RuleOptions` changes that of the rule.

    Raises:
      ValueError: for a field that cannot change, or a value out of range.
    """
    execution = changed(self.execution, changes)
    # Split and merged: other modules, the same arrays.
    model = nnx.merge(*nnx.split(self))
    model.set_execution(execution)
    return model

  def set_execution(self, execution: Execution) -> None:
    """Changes how this model is computed; `with_execution` leaves it alone.

    Args:
      execution: like the one there is but for what is in its `CHANGEABLE`.

    Raises:
      ValueError: if a mixer cannot be computed so.
    """
    self.execution = execution
    for layer in self.layers:
      layer.set_execution(execution)

  def _known(
    self,
    tokens: jax.Array,
    cache: ModelCache | None,
    segment_ids: jax.Array | None,
    mask: jax.Array | None,
  ) -> Tokens:
    """The tokens of a call that is accepted, and their places."""
    axis = self.execution.sequence_axis
    # Before anything is looked up: parameters bring their mesh with them.
    checks.check_array("parameters", self.norm.weight[...])
    call_inputs.check(
      *(tokens, cache, segment_ids, mask),
      vocab_size=self.config.vocab_size,
      axis=axis,
      init_cache=self.init_cache,
    )
    # Once for all layers: places are the same in each.
    mask = None if mask is None else jnp.asarray(mask).astype(bool)  # [B, T]
    places = call_inputs.places(tokens.shape, cache, segment_ids, mask, axis)
    return Tokens(places, segment_ids, mask)
