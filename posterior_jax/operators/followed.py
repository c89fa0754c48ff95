"""A measurement followed by something of its own: the shapes stay."""

import dataclasses

from posterior_jax.base import Operator


@dataclasses.dataclass(frozen=True)
class Followed(Operator):
  """A, and then something of what was measured; a base of such operators."""

  operator: Operator

  @property
  def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
    """(H, W, C)."""
    return self.operator.image_shape

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, c)."""
    return self.operator.measurement_shape
