"""Pixels that are wrong by more than noise: their residuals count for less."""

import dataclasses

import jax
import jax.numpy as jnp

from posterior_jax import fields
from posterior_jax.base import Observation, Operator, check_observation
from posterior_jax.noise.linked import Linked


def huber(
  y: jax.Array, operator: Operator, noise_std: float, *, threshold: float = 2.0
) -> Observation:
  """An observation of which some pixels are wrong by more than noise.

  Residuals r of more than some noise levels count by their size and not by its
  square, in the smooth form of Huber's loss (Charbonnier et al. 1997):

    t^2 (sqrt(1 + (r / t)^2) - 1),  t = threshold noise_std

  Args:
    y: [N, h, w, c], floating point, of images with pixels in [-1, 1].
    operator: A.
    noise_std: of the pixels that are right, > 0.
    threshold: in noise levels, > 0.

  Returns:
    The observation 0 = h(A x0 - y) + n, half the square of h being that loss.
    Nonlinear: see `operators.nonlinear` for who takes it.

  Raises:
    TypeError: for a y or an operator that is none.
    ValueError: for a noise level or threshold that is not positive, or a y that
      no sampler can use (`Observation`).

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
    >>> given = pj.noise.huber(jnp.ones((1, 8, 8, 1)), operator, 0.05)
    >>> x = jnp.zeros((1, 8, 8, 1))
    >>> round(float(given.operator.forward(x).max()), 1)  # 1 is 20 noise levels
    -0.4
  """
  fields.positive("noise_std", noise_std)
  fields.positive("threshold", threshold)
  # What `run` sees is 0 everywhere.
  check_observation(Observation(y, operator, noise_std))
  y = jnp.asarray(y, jnp.float32)
  link = _Huber(y, jnp.asarray(threshold * noise_std, jnp.float32))
  return Observation(jnp.zeros_like(y), Linked(operator, link), noise_std)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Huber:
  """Signed root of twice the loss of u - y."""

  y: jax.Array
  scale: jax.Array

  def __call__(self, u: jax.Array) -> jax.Array:
    r = (u - self.y) / self.scale
    # 2 (sqrt(1 + r^2) - 1) = 2 r^2 / (1 + sqrt(1 + r^2)): no cancellation, and
    # smooth in r at 0.
    return self.scale * r * jnp.sqrt(2 / (1 + jnp.sqrt(1 + r**2)))
