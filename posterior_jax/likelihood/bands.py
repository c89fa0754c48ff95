"""Which frequencies of the measurement may speak at each noise level.

A band is a gain in [0, 1] on the measurement's FFT grid, wide open at the end.
The likelihood weighs the residual's power by B = (1 - l) + l M^p (convex) or
1 + l M^p (additive), M the band and l the blend. p = 2 reads M as a filter of
the residual, whose square the misfit is; p = 1 as a weight of the misfit.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Observation, Operator
from posterior_jax.linalg import fourier, solve
from posterior_jax.operators.composed import Composed
from posterior_jax.short_repr import short_repr

Shape = Literal["hard", "butterworth", "gaussian"]
Blend = Literal["convex", "additive"]

# Cutoffs are shares of the corner's radius, so that 1 opens every frequency: a
# share of Nyquist would leave a fifth of the plane closed for ever.
_LARGEST_RADIUS = np.sqrt(0.5)
# Steep enough to be a band, smooth enough not to ring around edges.
_BUTTERWORTH_ORDER = 4


def check(operator: Operator) -> None:
  """Refuses an operator whose measurement has no spectrum to choose from.

  Raises:
    ValueError: for a measurement that is no picture, as that of `Dense`.
  """
  if not operator.gridded:
    raise ValueError(
      f"operator must measure a picture where a band is used; what "
      f"{type(operator).__name__} measures, of shape "
      f"{operator.measurement_shape}, is taken for none"
    )


def check_snr(operator: Operator) -> None:
  """Refuses an operator on whose grid `snr_band` knows no power.

  Raises:
    ValueError: for a measurement with more pixels a side than the image.
  """
  measured, image = operator.measurement_shape, operator.image_shape
  if measured[0] > image[0] or measured[1] > image[1]:
    raise ValueError(
      f"a measurement must be no larger than the image {image} for a band by "
      f"the prior's spectrum, got {measured}"
    )


def radial_band(
  shape: tuple[int, int], cutoff: jax.Array, kind: Shape
) -> jax.Array:
  """Low-pass gain [h, w] up to a cutoff.

  Args:
    shape: (h, w) of the measurement.
    cutoff: scalar > 0, fraction of the largest radius, the corner's.
    kind: "hard" disc, "butterworth" (order 4, half power at the cutoff) or
      "gaussian" (standard deviation = cutoff).
  """
  radius = fourier.radial_frequency(*shape) / _LARGEST_RADIUS
  ratio = jnp.asarray(radius, jnp.float32) / cutoff  # [h, w]
  # 1e-6: at cutoff 1 the corner itself lies within, whatever its rounding.
  if kind == "hard":
    return (ratio <= 1 + 1e-6).astype(jnp.float32)
  if kind == "butterworth":
    return jax.lax.rsqrt(1 + ratio ** (2 * _BUTTERWORTH_ORDER))
  return jnp.exp(-0.5 * ratio**2)


def snr_band(
  spectrum: jax.Array, shape: tuple[int, int], sigma: jax.Array
) -> jax.Array:
  """S / (S + sigma^2): the share of a frequency that rises above the noise.

  A frequency opens when the prior's power S exceeds the noise of the state,
  and all are open once sigma is below the smallest of sqrt(S). The operator
  scales signal and state noise equally and drops out.

  Args:
    spectrum: [H, W] or [H, W, C], the prior's power on the image grid.
    shape: (h, w) of the measurement, at most (H, W); its frequencies are the
      lowest ones of the image.
    sigma: scalar noise of the state.

  Returns:
    [h, w] or [h, w, C].
  """
  # Frequencies of the small grid by their sign: -1 is the last row of both
  # grids.
  rows, columns = (np.round(np.fft.fftfreq(n) * n).astype(int) for n in shape)
  power = spectrum[rows][:, columns]  # [h, w] or [h, w, C]
  return power / (power + sigma**2)


def weight(
  band: jax.Array, blend: jax.Array, form: Blend, power: int = 2
) -> jax.Array:
  """B of the likelihood: (1 - l) + l M^p or 1 + l M^p.

  Args:
    band: M, in [0, 1].
    blend: l, scalar in [0, 1].
    form: "convex" or "additive".
    power: p, 2 for a mask of the residual, 1 for one of its square. With the
      tie sigma^2, l = 1 and M = `snr_band`, p = 1 has the minimiser of the tie
      S sigma^2 / (S + sigma^2) and no band.

  Returns:
    B, of the band's shape.
  """
  full = 1 - blend if form == "convex" else jnp.ones_like(blend)
  return full + blend * band**power


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Banded(Composed, solve.Iterative):
  """F A: an operator followed by a filter of its measurement.

  Attributes:
    operator: A.
    gain: F, [h, w] or [h, w, C], >= 0.
  """

  gain: jax.Array

  __repr__ = short_repr

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


def apply_band(observation: Observation, weight: jax.Array) -> Observation:
  """The observation whose plain likelihood is the band-weighted one.

  Args:
    observation: y, A, s.
    weight: B, [h, w] or [h, w, C], >= 0; 0 is a frequency left out.

  Returns:
    y and A both followed by the filter sqrt(B), so that the square of the
    plain residual is r^T B r.
  """
  gain = jnp.sqrt(weight)
  # Dropped pixels are emptied first: the filter would spread what stands there.
  kept = observation.y * observation.operator.observed  # [N, h, w, C]
  y = fourier.apply_transfer(kept, gain)
  operator = Banded(observation.operator, gain)
  return Observation(y, operator, observation.noise_std)
