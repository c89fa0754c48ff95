"""An operator and then something of every measured pixel."""

import jax

from posterior_jax.operators.composed import Composed


class OfPixels(Composed):
  """A, and then something of every measured pixel."""

  @property
  def margin(self) -> int:
    """Of A."""
    return self.operator.margin

  def interior(self, x: jax.Array) -> jax.Array:
    """Of A."""
    return self.operator.interior(x)

  @property
  def observed(self) -> jax.Array:
    """Of A."""
    return self.operator.observed
