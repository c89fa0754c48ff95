"""Rotary frequencies for longer sequences than a model was trained on: YaRN."""

import dataclasses
import math

import numpy as np

from neumann_jax.checks import plain_numbers


@dataclasses.dataclass(frozen=True)
class Yarn:
  """How YaRN stretches rotary embedding (arXiv 2309.00071).

  Components that turn often over the training length keep their frequency,
  those that turn less than once have it divided by `factor`, and a ramp lies
  between; queries and keys grow a little, so that softmax stays as sharp. The
  fields are those of `rope_parameters` in a `config.json`.

  Attributes:
    factor: of the length, above 0.
    original_max_position_embeddings: the length of training, in tokens.
    attention_factor: what rotated queries and keys are multiplied by; None:
      0.1 ln(factor) + 1, or as `mscale` says.
    beta_fast: turns over the length of training above which a component keeps
      its frequency.
    beta_slow: turns below which it is divided.
    mscale: with the next, replaces 0.1 by 0.1 mscale and divides by the same
      of the other.
    mscale_all_dim: see mscale.
    truncate: whether the ends of the ramp are whole components.

  Raises:
    ValueError: for a value out of range.

  Example:
    >>> import neumann_jax as nj
    >>> yarn = nj.Yarn(factor=4.0, original_max_position_embeddings=262144)
    >>> f"{yarn.scale:.3f}", [f"{x:.2g}" for x in yarn.frequencies(1e7, 8)]
    ('1.139', ['1', '0.018', '0.0002', '1.4e-06'])
  """

  factor: float
  original_max_position_embeddings: int
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def __post_init__(self) -> None:
    """Raises ValueError for what cannot be."""
    plain_numbers(self)
    for name in (
      "factor",
      "original_max_position_embeddings",
      "beta_fast",
      "beta_slow",
    ):
      value = getattr(self, name)
      if not 0 < value < np.inf:
        raise ValueError(f"{name} of YaRN must be positive, got {value}")

  @property
  def scale(self) -> float:
    """What the rotated components of queries and keys are multiplied by."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
    return self._growth(1.0)

  def frequencies(self, theta: float, rotary_dim: int) -> np.ndarray:
    """Radians per token of each component pair: [rotary_dim / 2] float32.

    Args:
      theta: base of the frequencies.
      rotary_dim: r, even.
    """
    pair = np.arange(rotary_dim // 2)
    own = theta ** -(2 * pair / rotary_dim)
    low, high = self._ramp(theta, rotary_dim)
    stretched = np.clip((pair - low) / (high - low), 0, 1)
    mixed = own * (1 - stretched) + own / self.factor * stretched
    return mixed.astype(np.float32)

  def _ramp(self, theta: float, rotary_dim: int) -> tuple[float, float]:
    """Pairs between which frequencies go from kept to divided."""

    def pair_of(turns: float) -> float:
      span = self.original_max_position_embeddings / (turns * 2 * math.pi)
      return rotary_dim * math.log(span) / (2 * math.log(theta))

    low, high = pair_of(self.beta_fast), pair_of(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    # A ramp without length is a step.
    return low, high + 0.001 if low == high else high

  def _growth(self, mscale: float) -> float:
    return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1
