"""The next token from its logits: greedy, temperature, top-k, top-p."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax import checks


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """Which distribution a token is drawn from.

  softmax(logits / temperature), cut to the top_k most probable tokens, then to
  the smallest set of those whose share of what is left reaches top_p. Of
  equally probable tokens the lower ids come first.

  Attributes:
    temperature: at least 0; 0 is greedy: the most probable token, always.
    top_k: tokens kept, at least 1, or None for all.
    top_p: share of the mass kept (nucleus sampling, arXiv 1904.09751), in
      (0, 1], or None for all.

  Raises:
    ValueError: for a value out of range, or one without effect.

  Example:
    >>> import neumann_jax as nj
    >>> nj.SamplingSpec(temperature=0.7, top_p=0.9).greedy
    False
    >>> nj.SamplingSpec(temperature=0).greedy
    True
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float | None = None

  def __post_init__(self) -> None:
    """Raises ValueError for a field out of range or without effect."""
    if not (math.isfinite(self.temperature) and self.temperature >= 0):
      raise ValueError(
        f"temperature must be finite and at least 0, got {self.temperature}"
      )
    if self.top_k is not None and not (
      isinstance(self.top_k, int) and self.top_k >= 1
    ):
      raise ValueError(
        f"top_k must be an integer of at least 1, got {self.top_k!r}"
      )
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
    if self.greedy and (self.top_k is not None or self.top_p is not None):
      raise ValueError(
        "top_k and top_p have no effect at temperature 0, which is greedy"
      )

  @property
  def greedy(self) -> bool:
    """Whether nothing is drawn."""
    return self.temperature == 0


def sample(
  logits: jax.Array, key: jax.Array | None, spec: SamplingSpec
) -> jax.Array:
  """One token a row.

  Args:
    logits: [B, V] floating point; -inf rules a token out.
    key: for the draws; row b draws from `fold_in(key, b)`, so that the rows
      below it change nothing. None will do for a greedy spec.
    spec: the distribution.

  Returns:
    [B] int32.

  Raises:
    TypeError: if logits are not floating point, or key is no key.
    ValueError: for a wrong shape, a top_k above V or a missing key; and, on
      concrete logits, for NaN, +inf or a row of -inf.
  """
  check_logits(logits)
  check_draws(spec, key, logits.shape[1])
  logits = logits.astype(jnp.float32)
  if spec.greedy or key is None:  # a missing key was refused unless greedy
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  weights, ids = candidates(logits, spec)
  # One key a row: a row draws the same whatever the batch below it.
  rows = jnp.arange(logits.shape[0])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  place = jax.vmap(jax.random.categorical)(keys, weights)  # [B]
  return jnp.take_along_axis(ids, place[:, None], axis=1)[:, 0]


def candidates(
  logits: jax.Array, spec: SamplingSpec
) -> tuple[jax.Array, jax.Array]:
  """The tokens that can be drawn, the most probable first.

  Args:
    logits: [B, V] float32.
    spec: not greedy.

  Returns:
    Log weights [B, K], -inf where the token was cut, and ids [B, K] int32; K is
    top_k or V. Without top_k and top_p they stand in the order of the ids.
  """
  # From the largest: 0 there, and nothing overflows however low the
  # temperature is.
  below = logits - jnp.max(logits, axis=-1, keepdims=True)
  scaled = jnp.where(
    below == 0, 0, below / jnp.float32(spec.temperature)
  )  # [B, V]
  # Without a cut nothing needs sorting: V log V for every token.
  size = logits.shape[1]
  if spec.top_k is None and spec.top_p is None:
    ids = jnp.arange(size, dtype=jnp.int32)
    return scaled, jnp.broadcast_to(ids, scaled.shape)
  scaled, ids = lax.top_k(scaled, spec.top_k or size)  # ties: lower ids first
  if spec.top_p is None or spec.top_p == 1:
    return scaled, ids
  share = jax.nn.softmax(scaled, axis=-1)  # [B, K]
  before = jnp.cumsum(share, axis=-1) - share  # [B, K]
  # The first is always kept: nothing comes before it.
  return jnp.where(before < spec.top_p, scaled, -jnp.inf), ids


def check_draws(
  spec: SamplingSpec, key: jax.Array | None, vocab_size: int
) -> None:
  """Raises unless `spec` can draw from V tokens with this key."""
  if spec.top_k is not None and spec.top_k > vocab_size:
    raise ValueError(
      f"top_k must be at most the {vocab_size} tokens there are, got "
      f"{spec.top_k}"
    )
  if key is None and not spec.greedy:
    raise ValueError(
      "key must be given unless temperature is 0, which is greedy"
    )
  if key is not None:
    _check_key(key)


def _check_key(key: jax.Array) -> None:
  try:
    jax.eval_shape(lambda: jax.random.fold_in(key, 0))
  except (TypeError, ValueError) as error:
    raise TypeError(
      f"key must be one key of jax.random, got {type(key).__name__} of shape "
      f"{np.shape(key)}"
    ) from error


def check_logits(logits: jax.Array) -> None:
  """Raises unless logits are [B >= 1, V >= 1] and can be drawn from."""
  checks.check_floating("logits", logits)
  if logits.ndim != 2 or 0 in logits.shape:
    raise ValueError(
      f"logits must have shape [B >= 1, V >= 1], got {logits.shape}"
    )
  # One pass finds NaN, +inf and rows of -inf: the largest entry shows each.
  if isinstance(logits, jax.core.Tracer):
    return
  largest = np.asarray(logits, np.float32).max(axis=1)  # NaN if any is
  if not np.isfinite(largest).all():
    raise ValueError(
      "logits must have no NaN and a finite largest entry in every row, got "
      f"{largest[~np.isfinite(largest)][0]} for one"
    )
