"""A blur whose kernel is one of several: its error as noise of a known shape.

Where the kernel may be k_t, the sampler's operator A leaves the error
e_t = (A_t - A) x in the measurement. Under a prior of power S its covariance is
S E |delta a|^2 at every frequency (`chain.uncertainty_band`). At a level of the
sampler more is known: the prediction x0 says what each kernel would do to this
picture, so the noise of the likelihood is

  N = s^2 + E_t e_t e_t^T,  e_t = (A_t - A) x0,

as large in the few directions e_t as the kernel is uncertain, and s^2 in all
others. A band pays for the same doubt at every picture's frequencies.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax import uncertain
from posterior_jax.base import Observation
from posterior_jax.linalg import solve
from posterior_jax.nfc_sampler import Parts, Refined, Width
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.operators.composed import Composed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Whitened(Composed, solve.Iterative):
  """W A, W = s N^(-1/2) = 1 - U diag(c) U^T on the measurement.

  Attributes:
    operator: A.
    basis: U, orthonormal, [B, N, T, h, w, C].
    cut: c, [B, N, T] in [0, 1).
  """

  basis: jax.Array
  cut: jax.Array

  @property
  def gram_gain(self) -> jax.Array:
    """Of A: W differs from 1 in a few directions."""
    return self.operator.gram_gain

  def whiten(self, y: jax.Array) -> jax.Array:
    """W y."""
    share = self.cut * jnp.einsum("bnthwc,bnhwc->bnt", self.basis, y)
    return y - jnp.einsum("bnt,bnthwc->bnhwc", share, self.basis)

  def forward(self, x: jax.Array) -> jax.Array:
    """W A x."""
    return self.whiten(self.operator.forward(x))

  def adjoint(self, y: jax.Array) -> jax.Array:
    """A^T W y."""
    return self.operator.adjoint(self.whiten(y))


def whitened(
  observation: Observation, x0: jax.Array, others: jax.Array
) -> Observation:
  """The observation whose plain likelihood has the noise N.

  Args:
    observation: y, A and s; A a blur.
    x0: prediction, [B, N, H, W, C].
    others: the kernels k_t, [T, k, k], all equally likely.
  """
  operator, noise_std = observation.operator, observation.noise_std

  def error(kernel: jax.Array) -> jax.Array:
    blur = uncertain.with_kernel(operator, kernel)  # type: ignore[arg-type]
    return blur.forward(x0) - operator.forward(x0)  # [B, N, h, w, C]

  errors = jax.vmap(error, out_axes=2)(others) / len(others) ** 0.5
  gram = jnp.einsum(
    "bnthwc,bnuhwc->bntu", errors, errors, precision=lax.Precision.HIGHEST
  )
  value, vector = jnp.linalg.eigh(gram)  # [B, N, T], [B, N, T, T]
  # About their mean the errors have a direction less than there are kernels:
  # its value is a rounding, which must not be divided by.
  # An image that is 0 everywhere has no errors at all.
  least = jnp.maximum(1e-6 * value[..., -1:], 1e-12 * noise_std**2)
  value = jnp.maximum(value, least)
  basis = jnp.einsum(
    "bnthwc,bntu->bnuhwc",
    errors,
    vector / jnp.sqrt(value)[..., None, :],
    precision=lax.Precision.HIGHEST,
  )
  cut = 1 - lax.rsqrt(1 + value / noise_std**2)
  made = Whitened(operator, basis, cut)
  y = jnp.broadcast_to(observation.y, (*x0.shape[:2], *observation.y.shape[1:]))
  return Observation(made.whiten(y), made, noise_std)


def careful(parts: Parts, others: jax.Array) -> Parts:
  """The parts of a sampler whose likelihood has the noise N at every level.

  Args:
    parts: of the sampler, which take a linear blur.
    others: the kernels that may be the right one, [T, k, k].
  """

  def likelihood(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    seen = whitened(observation, x0, others)
    return parts.likelihood(key, seen, x0, width, level)

  return parts._replace(likelihood=likelihood)
