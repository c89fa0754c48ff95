"""The inner target of one noise level, and four ways to move towards it.

  U(z) = (A z - y)^T B (A z - y) / (2 s^2) + (z - c)^T C^-1 (z - c) / 2

with c the prediction, C the width of the tie (diagonal in Fourier space) and B
the band's weight on the measurement's spectrum. exp(-U) is Gaussian, so its
exact draw is known: perturb the data and the prediction, then solve.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import Observation, Operator, SolveInfo
from posterior_jax.linalg import fourier, reduce, solve

Inner = Literal["exact", "mean", "gradient", "langevin"]


class Target(NamedTuple):
  """One level's U.

  Attributes:
    observation: y, A and s; with the band already in both (`apply_band`).
    centre: c, [B, N, H, W, C].
    variance: Fourier diagonal of C, [], [H, W] or [..., H, W, C], whose
      leading axes broadcast against those of the centre.
  """

  observation: Observation
  centre: jax.Array
  variance: jax.Array


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


def apply_band(observation: Observation, weight: jax.Array) -> Observation:
  """The observation whose plain likelihood is the band-weighted one.

  Args:
    observation: y, A, s.
    weight: B, [h, w] or [h, w, C], > 0.

  Returns:
    y and A both followed by the filter sqrt(B). Dropped pixels are emptied
    first: the filter would spread whatever stands there.
  """
  gain = jnp.sqrt(weight)
  y = fourier.apply_transfer(
    observation.y * observation.operator.observed, gain
  )
  return Observation(
    y, Banded(observation.operator, gain), observation.noise_std
  )


def refine(
  key: jax.Array,
  target: Target,
  inner: Inner,
  *,
  steps: int,
  step_size: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo]:
  """Moves from the prediction towards the target, one of the four ways.

  Args:
    key: of the random ones.
    target: U.
    inner: "exact" is `draw`, "mean" `mean`, "gradient" `descend`, "langevin"
      `langevin`.
    steps: of "gradient" and "langevin".
    step_size: of "langevin".
    tolerance: relative residual of the solves of "exact" and "mean".
    max_iterations: their limit.

  Returns:
    [B, N, H, W, C], and how the solve went, zeros where there is none.
  """
  if inner == "exact":
    return draw(key, target, tolerance=tolerance, max_iterations=max_iterations)
  if inner == "mean":
    return mean(target, tolerance=tolerance, max_iterations=max_iterations)
  none = SolveInfo(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))
  if inner == "gradient":
    return descend(target, steps=steps), none
  return langevin(key, target, steps=steps, step_size=step_size), none


def draw(
  key: jax.Array, target: Target, *, tolerance: float, max_iterations: int
) -> tuple[jax.Array, SolveInfo]:
  """An exact draw from exp(-U): perturb, then solve.

  z = c + d with (A^T A / s^2 + C^-1) d = A^T (y - A c + s e) / s^2 +
  C^(-1/2) e', e and e' standard normal.
  """
  key_data, key_tie = jax.random.split(key)
  observation, centre, variance = target
  shape = centre.shape[:-3] + observation.operator.measurement_shape
  data = observation.noise_std * jax.random.normal(
    key_data, shape, centre.dtype
  )
  tie = jax.random.normal(key_tie, centre.shape, centre.dtype)
  return _solve(
    target,
    data,
    fourier.apply_transfer(tie, jax.lax.rsqrt(variance)),
    tolerance,
    max_iterations,
  )


def mean(
  target: Target, *, tolerance: float, max_iterations: int
) -> tuple[jax.Array, SolveInfo]:
  """The minimiser of U, which is the mean of exp(-U)."""
  zero = jnp.zeros((), target.centre.dtype)
  return _solve(target, zero, zero, tolerance, max_iterations)


def _solve(
  target: Target,
  data_noise: jax.Array,
  tie_noise: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo]:
  (y, operator, noise_std), centre, variance = (
    _parts(target.observation),
    target.centre,
    target.variance,
  )
  misfit = y - operator.forward(centre) + data_noise
  rhs = operator.adjoint(misfit) / noise_std**2 + tie_noise
  shift, info = operator.normal_solve(
    rhs,
    precision=1.0 / variance,
    noise_std=noise_std,
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  return centre + shift, info


def gradient(target: Target, z: jax.Array) -> jax.Array:
  """dU/dz = A^T (A z - y) / s^2 + C^-1 (z - c)."""
  y, operator, noise_std = _parts(target.observation)
  data = operator.adjoint(operator.forward(z) - y) / noise_std**2
  return data + fourier.apply_transfer(z - target.centre, 1.0 / target.variance)


def descend(target: Target, *, steps: int) -> jax.Array:
  """Steepest descent on U from c, each step the exact line minimum."""
  _, operator, noise_std = _parts(target.observation)

  def body(_: jax.Array, z: jax.Array) -> jax.Array:
    g = gradient(target, z)
    along = operator.forward(g) / noise_std
    tie = g * fourier.apply_transfer(g, 1.0 / target.variance)
    curvature = reduce.total(along**2) + reduce.total(tie)
    width = reduce.total(g**2) / jnp.maximum(curvature, jnp.finfo(z.dtype).tiny)
    return z - width * g

  return lax.fori_loop(0, steps, body, target.centre)


def langevin(
  key: jax.Array, target: Target, *, steps: int, step_size: jax.Array
) -> jax.Array:
  """Unadjusted Langevin from c: z <- z - h dU/dz + sqrt(2 h) e.

  Args:
    key: one normal image is drawn a step.
    target: U.
    steps: number of updates.
    step_size: h, in pixel^2; stable below 2 / (largest curvature of U).

  Returns:
    [B, N, H, W, C].
  """
  spread = jnp.sqrt(2 * step_size)

  def body(i: jax.Array, z: jax.Array) -> jax.Array:
    noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
    return z - step_size * gradient(target, z) + spread * noise

  return lax.fori_loop(0, steps, body, target.centre)


def _parts(
  observation: Observation,
) -> tuple[jax.Array, Operator, jax.Array]:
  return (
    observation.y,
    observation.operator,
    jnp.asarray(observation.noise_std, jnp.float32),
  )
