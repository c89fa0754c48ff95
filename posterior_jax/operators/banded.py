"""An operator followed by a filter of what it measures."""

import dataclasses

import jax
import jax.numpy as jnp

from posterior_jax.base import Operator, SolveInfo
from posterior_jax.linalg import fourier, solve


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Banded(Operator):
  """F A: an operator followed by a filter of its measurement.

  Attributes:
    operator: A.
    gain: F, [h, w] or [h, w, C], >= 0.
  """

  operator: Operator
  gain: jax.Array

  @property
  def image_shape(self) -> tuple[int, int, int]:  # type: ignore[override]
    """(H, W, C)."""
    return self.operator.image_shape

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, C)."""
    return self.operator.measurement_shape

  @property
  def gram_gain(self) -> jax.Array:
    """Gain of A times the filter's, aliases repeated on the image grid."""
    height, width, _ = self.image_shape
    h, w, _ = self.measurement_shape
    if height % h or width % w:  # no reduced grid: its frequencies mean nothing
      return self.operator.gram_gain * jnp.mean(self.gain**2)
    # A frequency of the small grid stands for every alias on the image's.
    square = jnp.tile(
      self.gain**2,
      (height // h, width // w) + (1,) * (self.gain.ndim - 2),
    )
    gain = self.operator.gram_gain
    return square * (gain[..., None] if square.ndim > gain.ndim > 0 else gain)

  def forward(self, x: jax.Array) -> jax.Array:
    """F A x."""
    return fourier.apply_transfer(self.operator.forward(x), self.gain)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """A^T F y."""
    return self.operator.adjoint(fourier.apply_transfer(y, self.gain))

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Conjugate gradients."""
    return solve.normal_equations(
      lambda x: self.adjoint(self.forward(x)),
      self.gram_gain,
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
