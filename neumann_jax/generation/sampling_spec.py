"""`SamplingSpec`: which distribution a token is drawn from."""

import dataclasses
import math
from numbers import Real

import jax
import numpy as np

from neumann_jax.checks import plain_numbers

_NUMBERS = (
  "temperature",
  "top_p",
  "min_p",
  "repetition_penalty",
  "presence_penalty",
)


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
  """Which distribution a token is drawn from.

  Penalties first; then softmax(logits / temperature), cut to the top_k most
  probable tokens, then to the smallest set of those whose share of what is left
  reaches top_p, then to those of at least min_p times the largest probability.
  Of equally probable tokens the lower ids come first.

  Attributes:
    temperature: at least 0; 0 is greedy: the most probable token, always.
    top_k: tokens kept, at least 1, or None for all.
    top_p: share of the mass kept (nucleus sampling, arXiv 1904.09751), in
      (0, 1], or None for all.
    min_p: share of the largest probability (arXiv 2407.01082), in [0, 1).
    repetition_penalty: positive logits of tokens that stand in the prompt or
      were generated are divided by it, negative ones multiplied (arXiv
      1909.05858); above 0, 1 for none.
    presence_penalty: is taken from the logits of tokens that were generated,
      finite; 0 for none.

  Raises:
    ValueError: for what is no number, a value out of range, or one without
      effect.

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
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  presence_penalty: float = 0.0

  def __post_init__(self) -> None:
    """Raises ValueError for a field out of range or without effect."""
    plain_numbers(self)
    self._check_types()
    if not (math.isfinite(self.temperature) and self.temperature >= 0):
      raise ValueError(
        f"temperature must be finite and at least 0, got {self.temperature}"
      )
    if self.top_p is not None and not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
    if not 0 <= self.min_p < 1:
      raise ValueError(f"min_p must be in [0, 1), got {self.min_p}")
    if not 0 < self.repetition_penalty < math.inf:
      raise ValueError(
        "repetition_penalty must be finite and above 0, got "
        f"{self.repetition_penalty}"
      )
    if not math.isfinite(self.presence_penalty):
      raise ValueError(
        f"presence_penalty must be finite, got {self.presence_penalty}"
      )
    if self.greedy and (self.top_k is not None or self.top_p is not None):
      raise ValueError(
        "top_k and top_p have no effect at temperature 0, which is greedy"
      )
    if self.greedy and self.min_p:
      raise ValueError("min_p has no effect at temperature 0, which is greedy")

  def _check_types(self) -> None:
    for name in _NUMBERS:
      value = getattr(self, name)
      if name == "top_p" and value is None:
        continue
      if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if self.top_k is None:
      return
    whole = isinstance(self.top_k, int | np.integer)
    if isinstance(self.top_k, bool) or not whole or self.top_k < 1:
      raise ValueError(
        f"top_k must be an integer of at least 1, got {self.top_k!r}"
      )

  @property
  def greedy(self) -> bool:
    """Whether nothing is drawn."""
    return self.temperature == 0


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
