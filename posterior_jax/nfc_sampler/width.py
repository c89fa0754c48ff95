"""The width of the tie: how far the measurement may move a prediction.

The tie holds a level's image to its prediction x0 by a Gaussian of covariance
C. Four choices, from the paper's sigma^2 to the denoiser's own Jacobian, and an
inflation for where the choice is too sure. A part of `parts.Parts` each:
(probes, observation, predicted, level) -> `Width`.

Inflation. Where a prior is right, the misfit r = y - A c of a prediction c is
as large as its width C and the noise s say: E |r|^2 = tr(A C A^T) + m s^2. An
overconfident network shows as a larger misfit, and a width that stays small
would keep the measurement from putting it right. Ensemble
filters widen theirs by the factor that balances the two sides (Wang & Bishop
2003; Anderson 2007); this is that factor, where the difference is no accident.
It cannot tell an overconfident prior from noise that is stronger than assumed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posterior_jax.base import Linear, Observation, misfit
from posterior_jax.linalg import fourier, reduce
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.parts import Prediction, Probes, Width

# A factor further off than this is no error of a spectrum: a probe that finds
# one has met a Jacobian which is no covariance.
_LARGEST_CORRECTION = 8.0
# Standard deviations of |r|^2 that are left to chance: 1 in 20 images of a
# right prior is touched, and by little.
_ACCIDENT = 2.0


WidthPart = Callable[[Probes, Observation, Prediction, Level], Width]


def isotropic(
  probes: Probes, observation: Observation, predicted: Prediction, level: Level
) -> Width:
  """sigma^2 in every direction, as in DAPS and the paper."""
  del probes, observation, predicted
  return Width(level.tied**2)


def spectral(spectrum: jax.Array) -> WidthPart:
  """S sigma^2 / (S + sigma^2): exact for a Gaussian prior of spectrum S."""

  def part(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    del probes, observation, predicted
    return Width(_conditional_variance(spectrum, level.tied))

  return part


def probed(spectrum: jax.Array) -> WidthPart:
  """`spectral`, its size in every half octave from one Jacobian product."""

  def part(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    del observation
    assert predicted.covariance is not None  # of a predictor with a VJP
    found = corrected_variance(
      probes[0],
      predicted.covariance,
      _conditional_variance(spectrum, level.sigma),
      predicted.x0,
    )
    return Width(found, products=1)

  return part


def jacobian(
  probes: Probes, observation: Observation, predicted: Prediction, level: Level
) -> Width:
  """sigma^2 dD/dx as it is, which knows edges; by products alone."""
  del probes, observation, level
  return Width(product=predicted.covariance)


def guessed(part: WidthPart, guess: WidthPart) -> WidthPart:
  """Another part's product, and beside it a diagonal that it is about."""

  def both(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    width = part(probes, observation, predicted, level)
    about = guess(probes, observation, predicted, level).diagonal
    return width._replace(guess=about)

  return both


def inflating(part: WidthPart, largest: float) -> WidthPart:
  """Another part's diagonal, larger where the misfit is; takes one more probe.

  Args:
    part: gives a diagonal.
    largest: factor, >= 1.
  """

  def inflated(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    *others, probe = probes
    width = part(others, observation, predicted, level)
    assert width.diagonal is not None  # `NFCConfig` refuses another tie
    diagonal = inflated_variance(
      probe, observation, predicted.x0, width.diagonal, largest
    )
    return width._replace(diagonal=diagonal)

  return inflated


def scaled(part: WidthPart, factor: float) -> WidthPart:
  """Another part's width times a factor."""

  def widened(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    width = part(probes, observation, predicted, level)
    product = width.product
    if product is not None:
      guess = None if width.guess is None else factor * width.guess
      return width._replace(product=lambda v: factor * product(v), guess=guess)
    assert width.diagonal is not None  # a width has one of the two
    return width._replace(diagonal=factor * width.diagonal)

  return widened


def capped(part: WidthPart, most: jax.Array | float) -> WidthPart:
  """Another part's diagonal where it is below most^2, else that."""

  def least(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    width = part(probes, observation, predicted, level)
    assert width.diagonal is not None  # of `Sigma`
    return width._replace(diagonal=jnp.minimum(width.diagonal, most**2))

  return least


def _conditional_variance(spectrum: jax.Array, sigma: jax.Array) -> jax.Array:
  """Var[x0 | x] of a Gaussian prior, [H, W] or [H, W, C]."""
  return spectrum * sigma**2 / (spectrum + sigma**2)


def corrected_variance(
  key: jax.Array,
  covariance: Linear,
  variance: jax.Array,
  images: jax.Array,
) -> jax.Array:
  """A width in Fourier space, put right by one product with the denoiser.

    variance * r,  r = sum Re(conj(F v) F C v) / sum |F v|^2 variance

  for a white probe v (Hutchinson's estimate of the diagonal), summed over each
  half octave of radial frequency (all below 2 cycles an image together), the
  channels and the samples of one observation. Where C is diagonal in Fourier
  space and the width right in shape within a half octave, r is exact for any
  probe. It is kept within a factor of 8.

  Args:
    key: of the probe.
    covariance: v -> C v, one VJP.
    variance: Fourier diagonal to correct, [H, W] or [H, W, C], > 0.
    images: [B, N, H, W, C], of the shape that `covariance` takes.

  Returns:
    The width of every observation, [N, H, W, 1] or [N, H, W, C].
  """
  probe = jax.random.normal(key, images.shape, images.dtype)
  f = jnp.fft.fft2(probe, axes=(-3, -2), norm="ortho")
  product = jnp.fft.fft2(covariance(probe), axes=(-3, -2), norm="ortho")
  grid = fourier.on_grid(variance)  # [H, W, 1 or C]
  found = jnp.real(jnp.conj(f) * product)
  assumed = jnp.abs(f) ** 2 * grid
  size = max(variance.shape[:2])
  radius = fourier.radial_frequency(*variance.shape[:2]) * size
  # Nine frequencies in the lowest ring, enough for a ratio of sums; the
  # corners, which lie beyond the last half octave, join the highest.
  radius = np.clip(radius, 1.5, max(0.6 * size, 1.5))
  # A radius on an edge belongs to the outer ring, whatever its rounding.
  ring = np.floor(2 * np.log2(radius) + 1e-9).astype(int) - 1
  # [H, W, K]; float32 products would lose the few large coefficients' digits.
  member = jax.nn.one_hot(ring, int(ring.max()) + 1, dtype=f.real.dtype)
  sums = [
    jnp.einsum("bnhwc,hwk->nk", a, member, precision=lax.Precision.HIGHEST)
    for a in (found, assumed)
  ]
  ratio = sums[0] / sums[1]  # [N, K]
  ratio = jnp.clip(ratio, 1 / _LARGEST_CORRECTION, _LARGEST_CORRECTION)
  return ratio[:, ring][..., None] * grid


def inflated_variance(
  key: jax.Array,
  observation: Observation,
  centre: jax.Array,
  variance: jax.Array,
  largest: float,
) -> jax.Array:
  """The width under which the misfit of a prediction is no surprise.

    variance * a,  a = 1 + d / tr(A C A^T),  d = |y - A c|^2 - E |y - A c|^2

  d is moved towards 0 by two standard deviations of |r|^2, so that a right
  width stays as it is in all but a few cases of a hundred, and a is kept
  within [1 / largest, largest]. The variance of |r|^2 is
  2 tr((A C A^T + s^2)^2) by one white probe v of the measurement. The trace is
  that of `gram_gain`, which is the diagonal of A^T A but for mirrored borders.
  Where an operator's is a preconditioner alone, the trace is v^T A C A^T v, and
  its own variance 2 tr((A C A^T)^2) is left to chance as well.

  Args:
    key: of the probe.
    observation: y, A and s.
    centre: c, [B, N, H, W, C].
    variance: Fourier diagonal of C, [H, W] or [..., H, W, C], > 0.
    largest: of the factor, >= 1.

  Returns:
    The width of every image, [B, N, H, W, 1] or [B, N, H, W, C].
  """
  operator, noise = observation.operator, observation.noise_std**2
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  r = misfit(observation, centre)  # [B, N, h, w, C]
  # A white probe v: E |K v|^2 = tr(K^2) for K = A C A^T + s^2.
  probe = observed * jax.random.normal(key, r.shape, r.dtype)
  spread = fourier.apply_transfer(operator.adjoint(probe), variance)
  spread = observed * operator.forward(spread)  # A C A^T v
  squares = reduce.total((spread + noise * probe) ** 2)

  grid = fourier.on_grid(variance)
  if operator.gain_is_exact:
    power = fourier.on_grid(operator.gram_gain) * grid
    # A spectrum [H, W] stands for every channel, so its trace counts C times.
    lead = power.shape[:-3]
    trace = reduce.total(jnp.broadcast_to(power, lead + centre.shape[-3:]))
  else:
    trace = reduce.total(probe * spread)
    squares = squares + reduce.total(spread**2)
  chance = _ACCIDENT * jnp.sqrt(2 * squares)
  surprise = reduce.total(r**2) - trace - jnp.sum(observed) * noise
  # Towards 0 by what chance explains: a right width is left alone.
  excess = jnp.sign(surprise) * jnp.maximum(jnp.abs(surprise) - chance, 0)
  return grid * jnp.clip(1 + excess / trace, 1 / largest, largest)
