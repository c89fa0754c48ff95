"""The tie's width from the denoiser itself: C = sigma^2 dD/dx.

For the exact denoiser this is the covariance of the clean image given the
noisy one (Tweedie's second-order formula), so no spectrum is needed. C is
known by its products alone, one vector-Jacobian product (VJP) each, as in MMPS
(Rozet et al. 2024): the Jacobian of an exact denoiser is symmetric, that of a
network nearly so.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.base import Denoiser, Observation, SolveInfo
from posterior_jax.denoising import predictor
from posterior_jax.linalg import fourier, reduce, solve

_LARGEST_CORRECTION = 8.0
_EXHAUSTED = 1e-5  # of a product, below which rounding rules what is left


def linearise(
  denoise: Denoiser, x: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, solve.Linear]:
  """The denoised image and the covariance around it: one call.

  Args:
    denoise: D.
    x: [..., H, W, C] at noise sigma.
    sigma: scalar > 0.

  Returns:
    D(x, sigma), and v -> sigma^2 (dD/dx)^T v of the same shape, one VJP.
  """
  x0, pullback = jax.vjp(lambda x: predictor.clean(denoise, x, sigma), x)
  return x0, lambda v: sigma**2 * pullback(v)[0]


def corrected(
  key: jax.Array,
  covariance: solve.Linear,
  width: jax.Array,
  images: jax.Array,
) -> jax.Array:
  """A width in Fourier space, put right by one product with the denoiser.

    width * r,  r = sum Re(conj(F v) F C v) / sum |F v|^2 width

  for a white probe v (Hutchinson's estimate of the diagonal), summed over each
  half octave of radial frequency (all below 2 cycles an image together), the
  channels and the samples of one observation. Where C is diagonal in Fourier
  space and the width right in shape within a half octave, r is exact for any
  probe. It is kept within a factor of 8.

  Args:
    key: of the probe.
    covariance: v -> C v, one VJP.
    width: Fourier diagonal to correct, [H, W] or [H, W, C], > 0.
    images: [B, N, H, W, C], of the shape that `covariance` takes.

  Returns:
    The width of every observation, [N, H, W, 1] or [N, H, W, C].
  """
  probe = jax.random.normal(key, images.shape, images.dtype)
  f = jnp.fft.fft2(probe, axes=(-3, -2), norm="ortho")
  product = jnp.fft.fft2(covariance(probe), axes=(-3, -2), norm="ortho")
  grid = fourier.on_grid(width)  # [H, W, 1 or C]
  found = jnp.real(jnp.conj(f) * product)
  assumed = jnp.abs(f) ** 2 * grid
  size = max(width.shape[:2])
  radius = fourier.radial_frequency(*width.shape[:2]) * size
  # Nine frequencies in the lowest ring; the corners join the highest.
  radius = np.clip(radius, 1.5, max(0.6 * size, 1.5))
  ring = np.floor(2 * np.log2(radius) + 1e-9).astype(int) - 1
  member = jax.nn.one_hot(ring, int(ring.max()) + 1, dtype=f.real.dtype)
  sums = [
    jnp.einsum("bnhwc,hwk->nk", a, member, precision=lax.Precision.HIGHEST)
    for a in (found, assumed)
  ]
  ratio = sums[0] / sums[1]
  ratio = jnp.clip(ratio, 1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION)
  return ratio[:, ring][..., None] * grid


def draw(
  key: jax.Array,
  observation: Observation,
  centre: jax.Array,
  covariance: solve.Linear,
  *,
  root_steps: int,
  tolerance: float,
  max_iterations: int,
) -> tuple[jax.Array, SolveInfo, jax.Array]:
  """A draw from N(centre, C) given y = A z + s n, by Matheron's rule.

    z = u + C A^T (A C A^T + s^2)^-1 (y - A u + s e),  u = c + C^(1/2) e'

  e and e' standard normal: u is drawn from the prior of the level and moved by
  the measurement. The square root is `root`, the solve conjugate residuals on
  measurements; what they leave out, later levels correct. A step that is too
  long for any covariance is shortened, as in `mean`.

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
    + iterations + 1.
  """
  key_data, key_tie = jax.random.split(key)
  white = jax.random.normal(key_tie, centre.shape, centre.dtype)
  start = centre + root(covariance, white, root_steps)
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
  return z, info, root_steps + 1 + info.iterations


def mean(
  observation: Observation,
  centre: jax.Array,
  covariance: solve.Linear,
  *,
  tolerance: float,
  max_iterations: int,
  solver: solve.Solver = solve.minimal_residual,
  restrained: bool = True,
) -> tuple[jax.Array, SolveInfo, jax.Array]:
  """The mean of what `draw` draws; iterations + 1 products with C.

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
    z, how the solve went, and how many products with C it took.
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
  return z, info, 1 + info.iterations


def _move(
  observation: Observation,
  start: jax.Array,
  data_noise: jax.Array,
  covariance: solve.Linear,
  *,
  tolerance: float,
  max_iterations: int,
  solver: solve.Solver = solve.minimal_residual,
  restrained: bool = True,
) -> tuple[jax.Array, SolveInfo]:
  """start + C A^T (A C A^T + s^2)^-1 (y - A start + data_noise)."""
  operator = observation.operator
  misfit = observation.y - operator.forward(start) + data_noise
  misfit = operator.observed * misfit  # dropped pixels hold no data

  def matrix(v: jax.Array) -> jax.Array:
    spread = operator.forward(covariance(operator.adjoint(v)))
    return spread + observation.noise_std**2 * v

  v, iterations = solver(
    matrix, misfit, tolerance=tolerance, max_iterations=max_iterations
  )
  shift = covariance(operator.adjoint(v))
  image = operator.forward(shift)
  solved = image + observation.noise_std**2 * v
  if restrained:
    shift = _shortening(misfit, image) * shift
  return start + shift, solve.report(misfit, solved, iterations)


def _shortening(misfit: jax.Array, image: jax.Array) -> jax.Array:
  """The factor in [0, 1] on a shift that leaves the least of the misfit.

  1 for exact solutions under a covariance: 0 <= K (K + s^2)^-1 <= 1.
  """
  along, size = reduce.total(misfit * image), reduce.total(image**2)
  return jnp.clip(along / jnp.maximum(size, 1e-30), 0, 1)


def root(covariance: solve.Linear, x: jax.Array, steps: int) -> jax.Array:
  """C^(1/2) x by the Lanczos method: of covariance C for white x.

  The best answer in the Krylov space of x, exact once `steps` reaches the
  number of different eigenvalues; else the error falls as 1 / steps for
  eigenvalues near 0, and geometrically where they are bounded away from it.
  The basis is orthogonalised in full, twice, and keeps `steps` images in
  memory for each of the batch.

  Args:
    covariance: v -> C v, symmetric, no eigenvalue below 0.
    x: [..., H, W, C].
    steps: products with C, >= 1.

  Returns:
    [..., H, W, C].
  """
  size = reduce.norm(x)  # [..., 1, 1, 1]
  basis = jnp.zeros((steps, *x.shape), x.dtype).at[0].set(x / size)
  cells = jnp.zeros((2, steps, *size.shape), x.dtype)  # diagonal, beside it

  def step(i: jax.Array, carry: tuple) -> tuple:
    basis, cells = carry
    product = covariance(basis[i])
    rest, along = _orthogonal(product, basis)
    rest, _ = _orthogonal(rest, basis)
    beside = reduce.norm(rest)
    goes_on = beside > _EXHAUSTED * reduce.norm(product)
    beside = jnp.where(goes_on, beside, 0)
    following = jnp.where(goes_on, rest / jnp.where(goes_on, beside, 1), 0)
    cells = cells.at[0, i].set(along[i]).at[1, i].set(beside)
    return basis.at[i + 1].set(following, mode="drop"), cells

  basis, cells = lax.fori_loop(0, steps, step, (basis, cells))
  weights = _root_of_tridiagonal(*cells[..., 0, 0, 0])  # [steps, ...]
  return size * jnp.sum(weights[..., None, None, None] * basis, axis=0)


def _root_of_tridiagonal(diagonal: jax.Array, beside: jax.Array) -> jax.Array:
  """First column of T^(1/2), [K, ...]; negative eigenvalues count as 0."""
  count = len(diagonal)
  eye = jnp.eye(count, dtype=diagonal.dtype)
  above = jnp.eye(count, k=1, dtype=diagonal.dtype)
  over = jnp.moveaxis(beside, 0, -1)[..., None] * above
  matrix = jnp.moveaxis(diagonal, 0, -1)[..., None] * eye
  matrix = matrix + over + jnp.swapaxes(over, -1, -2)  # [..., K, K]
  values, vectors = jnp.linalg.eigh(matrix)
  values = jnp.sqrt(jnp.maximum(values, 0))
  column = jnp.sum(vectors * (values * vectors[..., 0, :])[..., None, :], -1)
  return jnp.moveaxis(column, -1, 0)


def _orthogonal(x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
  """x less its parts along the basis [K, ...], and how long those are."""
  along = reduce.total(x * basis)
  return x - jnp.sum(along * basis, axis=0), along
