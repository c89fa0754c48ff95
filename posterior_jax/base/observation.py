"""What was measured, and how far an image is from it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base.operator import Operator
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
  """What was measured: y = A x0 + noise_std n.

  Attributes:
    y: [N, h, w, C], floating point, of images x0 with pixels in [-1, 1].
    operator: the measurement A.
    noise_std: scalar, > 0, on the scale of y.

  Raises:
    ValueError: for a noise_std of Python or NumPy that is not positive and
      finite; what else can be wrong, `run` says.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.super_resolution((8, 8, 3), factor=2)
    >>> observation = pj.Observation(jnp.zeros((1, 4, 4, 3)), operator, 0.05)
    >>> observation.operator.measurement_shape
    (4, 4, 3)
  """

  y: jax.Array
  operator: Operator
  noise_std: jax.Array | float

  __repr__ = short_repr

  def __post_init__(self) -> None:
    # As far as it is known without waiting for a device; `check_observation`
    # says the rest. JAX puts what it likes into a pytree's fields, axes of
    # vmap among them, which no operator stands beside.
    known = isinstance(self.noise_std, str | int | float | np.generic)
    if known and isinstance(self.operator, Operator):
      check_noise(self.noise_std)

  def linearised(self, x: jax.Array) -> "Observation":
    """What it is near x: y - A(x) + J x by the tangent J of A.

    Args:
      x: [..., N, H, W, C].

    Returns:
      An observation whose y has the leading axes of x; itself where A is
      linear.
    """
    if self.operator.is_linear:
      return self
    tangent = self.operator.tangent(x)
    y = self.y - self.operator.forward(x) + tangent.forward(x)
    return Observation(y, tangent, self.noise_std)


def check_noise(noise_std: Any) -> None:
  """Refuses a noise level that is no positive, finite scalar."""
  number = np.asarray(noise_std)
  numeric = number.ndim == 0 and number.dtype.kind in "fiu"
  if not (numeric and 0 < number < np.inf):
    shown = f"an array {number.shape}" if number.ndim else repr(noise_std)
    raise ValueError(
      f"noise_std must be a positive, finite scalar, got {shown}"
    )
  # Samplers divide by its square, in float32.
  if not 1e-18 <= number <= 1e18:
    raise ValueError(
      f"noise_std must lie in [1e-18, 1e18], whose squares float32 holds, got "
      f"{float(number):.3g}"
    )


def misfit(observation: Observation, x: jax.Array) -> jax.Array:
  """y - A x where the measurement holds data, 0 elsewhere.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].

  Returns:
    [..., N, h, w, C].
  """
  operator = observation.operator
  return operator.observed * (observation.y - operator.forward(x))


def normalised_residual(observation: Observation, x: jax.Array) -> jax.Array:
  """||y - A x||^2 / (m noise_std^2) over the m observed entries.

  Near 1 for the true image and below 1 for one that fits the noise.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].

  Returns:
    [..., N].
  """
  operator = observation.operator
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  # What dropped pixels hold is no data: neither its square nor its count.
  total = jnp.sum(misfit(observation, x) ** 2, axis=(-3, -2, -1))
  return total / (jnp.sum(observed) * observation.noise_std**2)
