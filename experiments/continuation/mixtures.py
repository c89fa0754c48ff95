"""Continuation with weights: sequential Monte Carlo on mixtures of Gaussians.

Far from the data a posterior of several modes is no Gaussian about the
denoiser's answer, so that a chain of Gaussian draws gives the modes wrong
shares. Weights put that right (twisted diffusion sampling, Wu et al. 2023,
arXiv 2306.17775): the posterior of level k is tempered by what the denoiser
already says of the measurement,

  psi_k(x) = N(y; A D, A C A^T + s^2),  C = sigma^2 dD/dx,

a particle moves by the Gaussian of (D, C) given y and carries the ratio of what
it should have done to what it did.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jax import lax

from experiments.calibration.problems import Mixture
from posterior_jax import schedule
from posterior_jax.operators.dense import Dense
from posterior_jax.priors import GaussianMixture

# Where the levels end: below the modes' own spread, 1/16.
SIGMA_MAX, SIGMA_MIN = 20.0, 0.02


class Particles(NamedTuple):
  """Where a run has come.

  Attributes:
    x: [N, D].
    log_weight: [N], up to a constant.
  """

  x: jax.Array
  log_weight: jax.Array


class Gaussian(NamedTuple):
  """A Gaussian for every particle: mean [N, D], covariance [N, D, D]."""

  mean: jax.Array
  covariance: jax.Array


def mode_share_error(
  problem: Mixture, key: jax.Array, *, levels: int, count: int, weighted: bool
) -> float:
  """Total variation between the modes' shares of particles and exact ones.

  Args:
    problem: prior, measurement and exact posterior.
    key: of the run.
    levels: of noise, one call and D products each.
    count: of particles.
    weighted: whether they have weights and are resampled; False is the same
      chain of Gaussian draws.
  """
  operator, noise = problem.observation.operator, problem.observation.noise_std
  assert isinstance(operator, Dense)
  y = problem.observation.y.ravel()
  nodes = schedule.karras(levels, sigma_max=SIGMA_MAX, sigma_min=SIGMA_MIN)
  x, log_weight = particles(
    problem.prior,
    operator.matrix,
    y,
    jnp.asarray(noise, jnp.float32),
    jnp.asarray(nodes, jnp.float32),
    key,
    count=count,
    weighted=weighted,
  )
  means = problem.prior.means.reshape(len(problem.prior.means), -1)
  nearest = jnp.argmin(jnp.sum((x[:, None] - means) ** 2, -1), axis=1)
  member = jax.nn.one_hot(nearest, len(means))
  if not weighted:
    log_weight = jnp.zeros_like(log_weight)
  shares = jax.nn.softmax(log_weight) @ member
  return float(0.5 * jnp.sum(jnp.abs(shares - problem.posterior.weights)))


def _step(
  believed: Callable[[jax.Array, jax.Array], Gaussian],
  evidence: Callable[[Gaussian], tuple[jax.Array, Gaussian]],
  weighted: bool,
) -> Callable[..., tuple[Particles, None]]:
  """The body of the scan over levels."""

  def step(
    state: Particles, level: tuple[jax.Array, jax.Array, jax.Array]
  ) -> tuple[Particles, None]:
    sigma, following, key = level
    keys = jax.random.split(key)
    if weighted:
      state = _resampled(keys[0], state)
    prior = believed(state.x, sigma)
    before, posterior = evidence(prior)
    # x' lies on the bridge from x to x0: both of them are known to it.
    ratio = (following / sigma) ** 2
    spread = following**2 * (1 - ratio)
    ahead = [
      Gaussian(
        g.mean + ratio * (state.x - g.mean),
        (1 - ratio) ** 2 * g.covariance + spread * jnp.eye(state.x.shape[1]),
      )
      for g in (prior, posterior)
    ]
    x = _drawn(keys[1], ahead[1])
    after, _ = evidence(believed(x, following))
    gain = log_density(ahead[0], x) - log_density(ahead[1], x)
    return Particles(x, state.log_weight + gain + after - before), None

  return step


def _resampled(key: jax.Array, state: Particles) -> Particles:
  """Systematic resampling where fewer than half of the particles count."""
  share = jax.nn.softmax(state.log_weight)
  count = len(share)
  # One draw for all: evenly spaced places lose the fewest particles.
  even = jnp.arange(count, dtype=share.dtype)
  places = (even + jax.random.uniform(key)) / count
  chosen = jnp.searchsorted(jnp.cumsum(share), places)
  poor = 1 / jnp.sum(share**2) < count / 2
  chosen = jnp.where(poor, jnp.minimum(chosen, count - 1), jnp.arange(count))
  weight = jnp.where(poor, 0.0, state.log_weight)
  return Particles(state.x[chosen], weight)


def log_density(gaussian: Gaussian, x: jax.Array) -> jax.Array:
  """Of x [N, D], up to a constant, [N]."""
  root = jnp.linalg.cholesky(gaussian.covariance)
  white = jax.scipy.linalg.solve_triangular(
    root, (x - gaussian.mean)[..., None], lower=True
  )[..., 0]
  diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)
  return -0.5 * jnp.sum(white**2, -1) - jnp.sum(jnp.log(diagonal), -1)


def given(
  prior: Gaussian, matrix: jax.Array, y: jax.Array, noise_std: jax.Array
) -> tuple[jax.Array, Gaussian]:
  """log N(y; A D, A C A^T + s^2) [N], and the Gaussian given y."""
  cross = jnp.einsum("nij,kj->nik", prior.covariance, matrix)  # C A^T
  seen = jnp.einsum("ki,nil->nkl", matrix, cross)
  seen = seen + noise_std**2 * jnp.eye(len(y))
  expected = prior.mean @ matrix.T  # [N, m]
  evidence = log_density(Gaussian(expected, seen), y)
  gain = jnp.swapaxes(jnp.linalg.solve(seen, jnp.swapaxes(cross, 1, 2)), 1, 2)
  mean = prior.mean + jnp.einsum("nik,nk->ni", gain, y - expected)
  # In Joseph's form, which stays positive in float32.
  keep = jnp.eye(matrix.shape[1]) - jnp.einsum("nik,kj->nij", gain, matrix)
  covariance = jnp.einsum(
    "nij,njk,nlk->nil", keep, prior.covariance, keep
  ) + noise_std**2 * jnp.einsum("nik,nlk->nil", gain, gain)
  return evidence, Gaussian(mean, covariance)


@functools.partial(jax.jit, static_argnames=("count", "weighted"))
def particles(
  prior: GaussianMixture,
  matrix: jax.Array,
  y: jax.Array,
  noise_std: jax.Array,
  nodes: jax.Array,
  key: jax.Array,
  *,
  count: int,
  weighted: bool,
) -> Particles:
  """Runs the levels; x is then at noise 0.

  Args:
    prior: of D numbers.
    matrix: A, [m, D].
    y: [m].
    noise_std: s.
    nodes: noise levels, the last 0, [K + 1].
    key: of all draws.
    count: N.
    weighted: see `mode_share_error`.
  """
  shape = prior.means.shape[1:]

  def believed(x: jax.Array, sigma: jax.Array) -> Gaussian:
    def one(x: jax.Array) -> jax.Array:
      image = x.reshape(1, *shape)
      return prior.denoise(image, sigma[None])[0].ravel()

    product = jax.vmap(jax.jacfwd(one))(x)  # [N, D, D]
    symmetric = (product + jnp.swapaxes(product, 1, 2)) / 2
    return Gaussian(jax.vmap(one)(x), sigma**2 * symmetric)

  def evidence(belief: Gaussian) -> tuple[jax.Array, Gaussian]:
    return given(belief, matrix, y, noise_std)

  start, along, last = jax.random.split(key, 3)
  x = nodes[0] * jax.random.normal(start, (count, matrix.shape[1]))
  weight, _ = evidence(believed(x, nodes[0]))
  state = Particles(x, weight)
  keys = jax.random.split(along, len(nodes) - 2)
  step = _step(believed, evidence, weighted)
  state, _ = lax.scan(step, state, (nodes[:-2], nodes[1:-1], keys))
  # The last draw needs no weight: what it should do is what it does.
  _, posterior = evidence(believed(state.x, nodes[-2]))
  return Particles(_drawn(last, posterior), state.log_weight)


def _drawn(key: jax.Array, gaussian: Gaussian) -> jax.Array:
  root = jnp.linalg.cholesky(gaussian.covariance)
  white = jax.random.normal(key, gaussian.mean.shape)
  return gaussian.mean + jnp.einsum("nij,nj->ni", root, white)
