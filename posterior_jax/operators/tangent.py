"""The linear map that a function of an image is near one image: its tangent.

Products with the Jacobian by `jax.jvp`, with its transpose by `jax.vjp`; normal
equations by conjugate gradients, preconditioned by the gain of each ring of
frequencies, which is probed.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Linear
from posterior_jax.linalg import fourier, solve
from posterior_jax.operators.shapes import widened
from posterior_jax.short_repr import short_repr


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tangent(solve.Iterative):
  """v -> J v, J the Jacobian of a function at an image of one's own each.

  Made by `tangent_at`.

  Attributes:
    function: f.
    at: [..., H, W, C]; leading axes broadcast against those of v.
    gain: Fourier diagonal of J^T J by rings of radius, [N, H, W, 1].
    image_shape: (H, W, C).
    output_shape: (h, w, c).
  """

  function: Linear
  at: jax.Array
  gain: jax.Array
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  output_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, c)."""
    return self.output_shape

  @property
  def gridded(self) -> bool:
    """False, as of the function's."""
    return False

  @property
  def gram_gain(self) -> jax.Array:
    """As probed once for every observation."""
    return self.gain

  @property
  def gain_is_exact(self) -> bool:
    """False: one probe, the mean over rings."""
    return False

  def forward(self, x: jax.Array) -> jax.Array:
    """J x, by `jax.jvp`."""
    x = widened("x", x, self.image_shape)

    def one(at: jax.Array, x: jax.Array) -> jax.Array:
      return jax.jvp(self.function, (at,), (x,))[1]

    return self._each(one, x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """J^T y, by `jax.vjp`."""
    y = widened("y", y, self.output_shape)

    def one(at: jax.Array, y: jax.Array) -> jax.Array:
      return jax.vjp(self.function, at)[1](y)[0]

    return self._each(one, y)

  def _each(
    self, one: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array
  ) -> jax.Array:
    lead = np.broadcast_shapes(self.at.shape[:-3], x.shape[:-3])
    pair = (
      jnp.broadcast_to(a, (*lead, *a.shape[-3:])).reshape(
        math.prod(lead), *a.shape[-3:]
      )
      for a in (self.at, x)
    )
    found = jax.vmap(one)(*pair)
    return found.reshape(*lead, *found.shape[1:])


def tangent_at(
  x: jax.Array,
  function: Linear,
  image_shape: tuple[int, int, int],
  output_shape: tuple[int, int, int],
) -> Tangent:
  """The Jacobian of a function at every image x [..., H, W, C]."""
  found = Tangent(function, x, jnp.ones(()), image_shape, output_shape)
  return dataclasses.replace(found, gain=_ring_gain(found))


def _ring_gain(tangent: Tangent) -> jax.Array:
  """Fourier diagonal of J^T J, of every observation by rings, [N, H, W, 1]."""
  height, width, _ = tangent.image_shape
  # One white probe an image; the key is fixed, so that a step draws the same
  # whether its measurement is linear or not.
  at = tangent.at
  probe = jax.random.normal(jax.random.key(0), at.shape, at.dtype)
  f, g = (
    jnp.fft.fft2(x, axes=(-3, -2))
    for x in (probe, tangent.adjoint(tangent.forward(probe)))
  )
  radius = fourier.radial_frequency(height, width) * max(height, width)
  ring = np.round(radius).astype(int)
  # Over channels and samples, but no two observations: each is solved alone.
  several = tuple(range(at.ndim - 4))
  found, size = (
    jax.ops.segment_sum(
      jnp.sum(x, axis=(*several, -1)).reshape(-1, ring.size).T,
      ring.ravel(),
      int(ring.max()) + 1,
    )
    for x in (jnp.real(jnp.conj(f) * g), jnp.abs(f) ** 2)
  )
  gain = found / size  # [rings, N]
  # A diagonal is never negative, and a preconditioner never 0.
  gain = jnp.maximum(gain, 1e-3 * jnp.mean(jnp.abs(gain), axis=0))
  return jnp.moveaxis(gain[ring], -1, 0)[..., None]
