"""Conditioning on a measurement under a covariance known by its products.

The two answers of `gaussian`, draw and mean, for a covariance C that no Fourier
transform diagonalises: a product v -> C v is one VJP through the denoiser
(`predictor.linearise`), so the systems are solved in the space of the
measurement, where they are smaller and need no inverse of C.
"""

import functools

import jax
import jax.numpy as jnp

from posterior_jax.base import Linear, Observation, SolveInfo
from posterior_jax.linalg import fourier, krylov, reduce


def draw(
  key: jax.Array,
  observation: Observation,
  centre: jax.Array,
  covariance: Linear,
  *,
  root_steps: int,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo, jax.Array]:
  """A draw from N(centre, C) given y = A z + s n, by Matheron's rule.

    z = u + C A^T (A C A^T + s^2)^-1 (y - A u + s e),  u = c + C^(1/2) e'

  e and e' standard normal: u is drawn from the prior of the level and moved by
  the measurement. The square root is `krylov.root`, the solve conjugate
  residuals in the space of measurements; what they leave out, later levels
  correct. A step too long for any covariance is shortened, as in `mean`.

  Args:
    key: of both normal draws.
    observation: y, A and s; with the band already in both.
    centre: c, [B, N, H, W, C].
    covariance: v -> C v.
    root_steps: products for the square root.
    tolerance: relative residual of the solve.
    max_iterations: its limit.

  Returns:
    z, how the solve went, and how many products with C it all took: root_steps
    + iterations.
  """
  key_data, key_tie = jax.random.split(key)
  white = jax.random.normal(key_tie, centre.shape, centre.dtype)
  start = centre + krylov.root(covariance, white, root_steps)
  shape = centre.shape[:-3] + observation.operator.measurement_shape
  noise = jax.random.normal(key_data, shape, centre.dtype)
  z, info = _move(
    observation,
    start,
    observation.noise_std * noise,
    covariance,
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  return z, info, root_steps + info.iterations


def mean(
  observation: Observation,
  centre: jax.Array,
  covariance: Linear,
  *,
  tolerance: float,
  max_iterations: int,
  solver: krylov.Solver = krylov.minimal_residual,
  restrained: bool = True,
) -> tuple[jax.Array, SolveInfo, jax.Array]:
  """The mean of what `draw` draws; a product with C for each iteration.

  Args:
    observation: as for `draw`.
    centre: likewise.
    covariance: likewise.
    tolerance: likewise.
    max_iterations: likewise.
    solver: of the linear system in measurements.
    restrained: whether z - c is shortened, where it is too long, to what leaves
      the least misfit. Under a covariance it never is too long; a network's
      Jacobian is not quite one.

  Returns:
    z, how the solve went, and how many products with C it took: the iterations.
  """
  z, info = _move(
    observation,
    centre,
    jnp.zeros((), centre.dtype),
    covariance,
    tolerance=tolerance,
    max_iterations=max_iterations,
    solver=solver,
    restrained=restrained,
  )
  return z, info, info.iterations


def guessed_mean(
  observation: Observation,
  centre: jax.Array,
  covariance: Linear,
  guess: jax.Array,
  *,
  tolerance: float,
  max_iterations: int,
  guess_tolerance: float = 1e-3,
  guess_iterations: int = 100,
  restrained: bool = False,
) -> tuple[jax.Array, SolveInfo, jax.Array]:
  """`mean` by few products, where C is about G: one for each iteration.

    z = c + C A^T v,  (A C A^T + s^2) v = y - A c

  by conjugate gradients that (A G A^T + s^2)^-1 preconditions, which takes no
  product with C. After one iteration z is c moved along

    C A^T (A G A^T + s^2)^-1 (y - A c),

  the direction of PiGDM (Song et al. 2023), by the length that is best under C
  itself.

  Args:
    observation: as for `draw`.
    centre: likewise.
    covariance: likewise.
    guess: Fourier diagonal of G, [], [H, W] or [..., H, W, C], > 0.
    tolerance: relative residual at which an image stops.
    max_iterations: limit, of products too.
    guess_tolerance: relative residual of the solves with G.
    guess_iterations: their limit, in either space.
    restrained: as of `mean`. False for a linear measurement, where iterations
      that go beyond the least misfit are nearer the mean. A tangent does not
      hold that far away, and the sampler would run away.

  Returns:
    z, how the solve went, and how many products with C it took: the iterations.
  """
  noise = jnp.asarray(observation.noise_std, centre.dtype)
  return mean(
    observation,
    centre,
    covariance,
    tolerance=tolerance,
    max_iterations=max_iterations,
    solver=functools.partial(
      krylov.carrying,
      least=noise**2,
      precondition=_guessed_inverse(
        observation, guess, guess_tolerance, guess_iterations
      ),
    ),
    restrained=restrained,
  )


def _guessed_inverse(
  observation: Observation,
  guess: jax.Array,
  tolerance: float,
  max_iterations: int,
) -> Linear:
  """r -> (A G A^T + s^2)^-1 r = (r - A d) / s^2 of the shift d that G gives.

  The difference is of what d leaves of r, so that under little noise it is
  made of what a solve for d leaves and of rounding: what is wrong with it is
  put right in the space of the measurement. A closed form needs that seldom.
  """
  operator = observation.operator
  matrix = _on_measurements(
    observation, lambda x: fourier.apply_transfer(x, guess)
  )

  def inverse(r: jax.Array) -> jax.Array:
    noise = jnp.asarray(observation.noise_std, r.dtype)
    shift, _ = operator.normal_solve(
      operator.adjoint(r) / noise**2,
      precision=1.0 / guess,
      noise_std=noise,
      tolerance=tolerance,
      max_iterations=max_iterations,
    )
    p, _ = krylov.conjugate_gradients(
      lambda v: matrix(v)[0],
      r,
      tolerance=tolerance,
      max_iterations=max_iterations,
      start=operator.observed * (r - operator.forward(shift)) / noise**2,
    )
    return p

  return inverse


def _on_measurements(
  observation: Observation, covariance: Linear
) -> krylov.Carried:
  """v -> (A C A^T v + s^2 v, C A^T v), zero in dropped pixels where v is."""
  operator = observation.operator

  def matrix(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    lead = covariance(operator.adjoint(v))
    noise = jnp.asarray(observation.noise_std, v.dtype)
    return operator.observed * operator.forward(lead) + noise**2 * v, lead

  return matrix


def _move(
  observation: Observation,
  start: jax.Array,
  data_noise: jax.Array,
  covariance: Linear,
  *,
  tolerance: float,
  max_iterations: int,
  solver: krylov.Solver = krylov.minimal_residual,
  restrained: bool = True,
) -> tuple[jax.Array, SolveInfo]:
  """start + C A^T (A C A^T + s^2)^-1 (y - A start + data_noise)."""
  operator = observation.operator
  misfit = observation.y - operator.forward(start) + data_noise
  misfit = operator.observed * misfit  # dropped pixels hold no data
  # On measurements [B, N, h, w, C]: well conditioned, since s^2 bounds it from
  # below, where C^-1 of a network's Jacobian would not exist.
  shift, v, iterations = solver(
    _on_measurements(observation, covariance),
    misfit,
    start,
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  image = operator.forward(shift)
  info = _report(observation, misfit, image, v, iterations)
  if restrained:
    shift = _shortening(misfit, image) * shift
  return start + shift, info


def _report(
  observation: Observation,
  misfit: jax.Array,
  image: jax.Array,
  v: jax.Array,
  iterations: jax.Array,
) -> SolveInfo:
  """What image = A C A^T v leaves of the misfit, of the shift itself.

  The solver's own residual is a recurrence, which goes on to fall where
  rounding has ended what a solution gains.
  """
  noise = jnp.asarray(observation.noise_std, v.dtype)
  solved = observation.operator.observed * image + noise**2 * v
  return krylov.report(misfit, solved, iterations)


def _shortening(misfit: jax.Array, image: jax.Array) -> jax.Array:
  """The factor in [0, 1] on a shift that leaves the least of the misfit.

  1 for exact solutions under a covariance: 0 <= K (K + s^2)^-1 <= 1.
  """
  # The minimum of |misfit - t image|^2 over t, cut to [0, 1].
  along, size = reduce.total(misfit * image), reduce.total(image**2)
  return jnp.clip(along / jnp.maximum(size, 1e-30), 0, 1)
