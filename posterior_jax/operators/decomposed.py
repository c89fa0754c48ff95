"""An operator beside its decomposition, which no solve makes again."""

import dataclasses

import jax
import jax.numpy as jnp

from posterior_jax.base import SolveInfo
from posterior_jax.linalg import solve
from posterior_jax.linalg.svd import Svd
from posterior_jax.operators.composed import Composed
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decomposed(Composed):
  """A and its singular value decomposition; made by `Operator.prepared`.

  The decomposition is an array like the others of the pytree: whoever changes
  the operator, or takes gradients with respect to it, prepares anew.

  Attributes:
    operator: A.
    known: of A.
  """

  known: Svd

  __repr__ = short_repr

  @property
  def pictorial(self) -> bool:
    """As of A."""
    return self.operator.pictorial

  @property
  def margin(self) -> int:
    """As of A."""
    return self.operator.margin

  @property
  def observed(self) -> jax.Array:
    """As of A."""
    return self.operator.observed

  @property
  def gridded(self) -> bool:
    """As of A."""
    return self.operator.gridded

  @property
  def even(self) -> bool:
    """As of A."""
    return self.operator.even

  @property
  def gram_gain(self) -> jax.Array:
    """As of A."""
    return self.operator.gram_gain

  @property
  def gain_is_exact(self) -> bool:
    """As of A."""
    return self.operator.gain_is_exact

  def forward(self, x: jax.Array) -> jax.Array:
    """A x."""
    return self.operator.forward(x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """A^T y."""
    return self.operator.adjoint(y)

  def svd(self) -> Svd:
    """The one that is known."""
    return self.known

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Closed form for a scalar precision, else as of A."""
    if jnp.ndim(precision) == 0:
      return solve.closed_form(self.known, rhs, precision, noise_std)
    return self.operator.normal_solve(
      rhs,
      precision=precision,
      noise_std=noise_std,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
