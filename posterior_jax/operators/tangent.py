"""Nonlinear measurements: y = f(x0) + noise, f a function of one image.

Samplers ask for the measurement's linear map at an image, its tangent: products
with the Jacobian of f by `jax.jvp`, with its transpose by `jax.vjp`. Near that
image y - f(x) is what an observation by the tangent leaves, so everything that
is known of linear measurements serves, once or again and again (Gauss-Newton).
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import Linear, Operator, SolveInfo
from posterior_jax.foreign_files.messages import first_line
from posterior_jax.linalg import fourier, solve
from posterior_jax.operators.function import as_pytree, each, returned
from posterior_jax.operators.shapes import check_image_shape, widened


class WithoutMatrix(Operator):
  """A measurement that is no matrix: its tangents have adjoint and gain."""

  @property
  def gridded(self) -> bool:
    """False: no band of a nonlinear measurement is one of the image."""
    return False

  @property
  def is_linear(self) -> bool:
    """False."""
    return False

  @property
  def gram_gain(self) -> jax.Array:
    """Of its tangents alone."""
    raise _no_matrix()

  def adjoint(self, y: jax.Array) -> jax.Array:
    """Of its tangents alone."""
    raise _no_matrix()

  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Of its tangents alone."""
    raise _no_matrix()


def _no_matrix() -> ValueError:
  """What a nonlinear operator says that is asked for a part of a matrix."""
  return ValueError(
    "operator must be linear here: nonlinear measurements are taken by nfc "
    "without a band and from a start of noise, dps, daps with Langevin "
    "updates, mmps and sitcom"
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nonlinear(WithoutMatrix):
  """y = f(x) for a smooth function f of one image; made by `nonlinear`.

  Attributes:
    function: f, [H, W, C] to [h, w, c]; a pytree.
    image_shape: (H, W, C).
    output_shape: (h, w, c).
  """

  function: Linear
  image_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )
  output_shape: tuple[int, int, int] = dataclasses.field(
    metadata={"static": True}
  )

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, c)."""
    return self.output_shape

  def forward(self, x: jax.Array) -> jax.Array:
    """f of every image."""
    return each(self.function, widened("x", x, self.image_shape))

  def tangent(self, x: jax.Array) -> "Tangent":
    """The Jacobian of f at every image [..., H, W, C]."""
    x = widened("x", x, self.image_shape)
    found = Tangent(
      self.function, x, jnp.ones(()), self.image_shape, self.output_shape
    )
    return dataclasses.replace(found, gain=_ring_gain(found))


def _ring_gain(tangent: "Tangent") -> jax.Array:
  """Fourier diagonal of J^T J, averaged over images and rings, [H, W]."""
  height, width, _ = tangent.image_shape
  # One white probe an image; the key is fixed, so that a step draws the same
  # whether its measurement is linear or not.
  at = tangent.at.reshape(-1, *tangent.image_shape)
  probe = jax.random.normal(jax.random.key(0), at.shape, at.dtype)
  flat = dataclasses.replace(tangent, at=at)
  f, g = (
    jnp.fft.fft2(x, axes=(-3, -2))
    for x in (probe, flat.adjoint(flat.forward(probe)))
  )
  radius = fourier.radial_frequency(height, width) * max(height, width)
  ring = np.round(radius).astype(int)
  found, size = (
    jax.ops.segment_sum(
      jnp.sum(x, axis=(0, -1)).ravel(), ring.ravel(), int(ring.max()) + 1
    )
    for x in (jnp.real(jnp.conj(f) * g), jnp.abs(f) ** 2)
  )
  gain = found / size  # [rings]
  # A diagonal is never negative, and a preconditioner never 0.
  return jnp.maximum(gain, 1e-3 * jnp.mean(jnp.abs(gain)))[ring]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tangent(solve.Iterative):
  """v -> J v, J the Jacobian of a function at an image of one's own each.

  Attributes:
    function: f.
    at: [..., H, W, C]; leading axes broadcast against those of v.
    gain: Fourier diagonal of J^T J by rings of radius, [H, W].
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
    """As probed once, the mean over all images."""
    return self.gain

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


# What a function is tried at, beside noise that fills most of [-1, 1].
_GREYS = (1.0, 0.97, 0.75, 0.25, 0.03, -0.03, -0.25, -0.75, -0.97, -1.0)


def nonlinear(function: Linear, image_shape: tuple[int, int, int]) -> Nonlinear:
  """An operator from a smooth function of one image.

  Taken by `nfc` without a band and from a start of noise, so not under
  `NFCConfig.fast` or the band of `paper`, and, of the baselines, by `dps`,
  `daps` with Langevin updates, `mmps` and `sitcom`; others refuse it.

  Args:
    function: f, [H, W, C] to [h, w, c], of JAX operations on real arrays, with
      derivatives in both modes. A plain function is part of the compiled
      program; a `jax.tree_util.Partial` can change its arrays without
      compiling again.
    image_shape: (H, W, C).

  Raises:
    TypeError: if `function` is not callable.
    ValueError: if it does not return a real array of three axes, or its
      derivative does not exist, is not finite or is 0 at all images tried.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> bright = lambda x: jnp.clip(2 * x, -1, 1)  # what a sensor clips
    >>> operator = pj.operators.nonlinear(bright, (8, 8, 3))
    >>> x = jnp.full((1, 8, 8, 3), 0.25)
    >>> float(operator.forward(x).max())
    0.5
    >>> float(operator.tangent(x).forward(x).max())
    0.5
  """
  image_shape = check_image_shape(image_shape)
  if not callable(function):
    raise TypeError(f"function must be callable, got {type(function).__name__}")
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  shape = returned(function, image).shape
  operator = Nonlinear(as_pytree(function), image_shape, shape)

  def both(x: jax.Array) -> jax.Array:
    tangent = operator.tangent(x)
    return tangent.adjoint(tangent.forward(x))

  try:
    jax.eval_shape(both, image)
  except Exception as error:  # of any kind, from inside the function
    raise ValueError(
      f"function must have derivatives in JAX operations: "
      f"{first_line(error).split('. ')[0]}"
    ) from error
  _check_derivative(both, image_shape)
  return operator


def _check_derivative(both: Linear, image_shape: tuple[int, int, int]) -> None:
  """Refuses a function whose tangent says nothing of any image tried."""
  x = 0.9 * jax.random.uniform(jax.random.key(0), image_shape, minval=-1)
  made = jax.jit(both)
  found = made(x)
  if isinstance(found, jax.core.Tracer):
    return
  if not bool(jnp.isfinite(found).all()):
    raise ValueError(
      "function must have finite values and derivatives at images in [-1, 1]"
    )
  # One may be flat but near an end of [-1, 1], or but above some mean.
  grey = (jnp.full(image_shape, value) for value in _GREYS)
  if not any(bool((made(image) != 0).any()) for image in (x, *grey)):
    raise ValueError(
      "function must have a derivative that is not 0 everywhere that it was "
      "tried, as that of rounding and of thresholds is: give it one by "
      "jax.custom_jvp"
    )


def phase_retrieval(
  image_shape: tuple[int, int, int], *, oversampling: float = 2.0
) -> Nonlinear:
  """Amplitudes of the Fourier transform of a padded image, phases lost.

    y = |F P (x + 1) / 2|, F orthonormal, P zeros around the image

  as in the code of DPS and DAPS: an image and its turn by 180 degrees have the
  same amplitudes, so that the field reports the best of four restarts.

  Args:
    image_shape: (H, W, C).
    oversampling: o, the padding at every side is int(o / 8 * max(H, W)) as
      there, > 0.

  Raises:
    ValueError: if oversampling is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.phase_retrieval((64, 64, 3))
    >>> operator.forward(jnp.zeros((1, 64, 64, 3))).shape
    (1, 96, 96, 3)
  """
  image_shape = check_image_shape(image_shape)
  fields.positive("oversampling", oversampling)
  margin = int(oversampling / 8 * max(image_shape[:2]))
  return nonlinear(_Amplitudes(margin), image_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Amplitudes:
  """A value, so that equal ones do not compile again."""

  margin: int = dataclasses.field(metadata={"static": True})

  def __call__(self, x: jax.Array) -> jax.Array:
    border = ((self.margin, self.margin),) * 2 + ((0, 0),)
    padded = jnp.pad(0.5 * x + 0.5, border)
    found = jnp.fft.fft2(padded, axes=(0, 1), norm="ortho")
    # Not abs, whose derivative is NaN at 0; far below any noise.
    return jnp.sqrt(found.real**2 + found.imag**2 + 1e-12)
