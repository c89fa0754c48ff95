"""Nonlinear measurements: y = f(x0) + noise, f a function of one image.

Samplers ask for the measurement's linear map at an image, its `tangent`. Near
that image y - f(x) is what an observation by the tangent leaves, so everything
that is known of linear measurements serves, once or again and again
(Gauss-Newton).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posterior_jax.base import Linear, Operator, SolveInfo
from posterior_jax.foreign_files.messages import first_line
from posterior_jax.operators.function import as_pytree, each, returned
from posterior_jax.operators.shapes import check_image_shape, widened
from posterior_jax.operators.tangent import Tangent, tangent_at
from posterior_jax.short_repr import short_repr


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
    "updates, mmps, sitcom and fastdips"
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

  __repr__ = short_repr

  @property
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, c)."""
    return self.output_shape

  def forward(self, x: jax.Array) -> jax.Array:
    """f of every image."""
    return each(self.function, widened("x", x, self.image_shape))

  def tangent(self, x: jax.Array) -> Tangent:
    """The Jacobian of f at every image [..., H, W, C]."""
    x = widened("x", x, self.image_shape)
    return tangent_at(x, self.function, self.image_shape, self.output_shape)


# What a function is tried at, beside noise that fills most of [-1, 1].
_GREYS = (1.0, 0.97, 0.75, 0.25, 0.03, -0.03, -0.25, -0.75, -0.97, -1.0)


def nonlinear(function: Linear, image_shape: tuple[int, int, int]) -> Nonlinear:
  """An operator from a smooth function of one image.

  Taken by `nfc` without a band and from a start of noise, so not under
  `NFCConfig.fast` or the band of `paper`, and, of the baselines, by `dps`,
  `daps` with Langevin updates, `mmps`, `sitcom` and `fastdips`; others refuse
  it.

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
  operator = untried(function, image_shape)

  def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    tangent = operator.tangent(x)
    return operator.forward(x), tangent.adjoint(tangent.forward(x))

  try:
    jax.eval_shape(both, jax.ShapeDtypeStruct(image_shape, jnp.float32))
  except Exception as error:  # of any kind, from inside the function
    raise ValueError(
      f"function must have derivatives in JAX operations: "
      f"{first_line(error).split('. ')[0]}"
    ) from error
  _check_derivative(both, image_shape)
  return operator


def untried(function: Linear, image_shape: tuple[int, int, int]) -> Nonlinear:
  """Of a function of this package, whose derivatives are known."""
  # A trial of them compiles for a third of a second.
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  shape = returned(function, image).shape
  return Nonlinear(as_pytree(function), image_shape, shape)


def _check_derivative(
  both: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
  image_shape: tuple[int, int, int],
) -> None:
  """Refuses a function whose tangent says nothing of any image tried."""
  x = 0.9 * jax.random.uniform(jax.random.key(0), image_shape, minval=-1)
  # One pixel of the middle grey, where a root of |x| has no derivative.
  x = x.at[0, 0, 0].set(0.0)
  made = jax.jit(both)
  found = made(x)
  if isinstance(found[0], jax.core.Tracer):
    return
  if not all(bool(jnp.isfinite(part).all()) for part in found):
    raise ValueError(
      "function must have finite values and derivatives at images in [-1, 1]"
    )
  # One may be flat but near an end of [-1, 1], or but above some mean.
  grey = (jnp.full(image_shape, value) for value in _GREYS)
  if not any(bool((made(image)[1] != 0).any()) for image in (x, *grey)):
    raise ValueError(
      "function must have a derivative that is not 0 everywhere that it was "
      "tried, as that of rounding and of thresholds is: give it one by "
      "jax.custom_jvp"
    )
