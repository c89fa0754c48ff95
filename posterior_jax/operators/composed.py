"""F A: an operator, and then a map F of its measurement to the same shape."""

import dataclasses

from posterior_jax.base import Operator


@dataclasses.dataclass(frozen=True)
class Composed(Operator):
  """Base of operators F A, whose shapes are those of A.

  Attributes:
    operator: A.
  """

  operator: Operator

  @property
  def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
    """(H, W, C)."""
    return self.operator.image_shape

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, c)."""
    return self.operator.measurement_shape
