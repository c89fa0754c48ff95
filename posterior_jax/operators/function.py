"""Measurements of one's own, from the forward map alone.

Everything else follows from it: the adjoint by JAX's transpose of a linear
function, the normal equations by conjugate gradients, and what preconditions
them, the gain of each frequency, by probing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.base import Linear, Operator
from posterior_jax.foreign_files.messages import first_line
from posterior_jax.linalg import fourier, solve
from posterior_jax.operators.shapes import check_image_shape, widened
from posterior_jax.short_repr import short_repr

F = TypeVar("F", bound=Callable[..., Any])

_PROBES = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Function(solve.Iterative):
  """y = f(x) for a linear function f of one image; made by `linear`.

  Attributes:
    function: f, [H, W, C] to [h, w, c]; a pytree.
    transpose: f^T, None for JAX's.
    gain: Fourier diagonal of f^T f, [H, W].
    image_shape: (H, W, C).
    output_shape: (h, w, c).
  """

  function: Linear
  transpose: Linear | None
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
    """Whether a measurement has the shape of an image, and may be a picture."""
    return self.output_shape == self.image_shape

  @property
  def gram_gain(self) -> jax.Array:
    """As probed when the operator was made."""
    return self.gain

  def forward(self, x: jax.Array) -> jax.Array:
    """f of every image."""
    x = widened("x", x, self.image_shape)
    return each(self.function, x)

  def adjoint(self, y: jax.Array) -> jax.Array:
    """f^T of every measurement."""
    y = widened("y", y, self.output_shape)
    if self.transpose is not None:
      return each(self.transpose, y)
    image = jax.ShapeDtypeStruct(self.image_shape, y.dtype)
    transpose = jax.linear_transpose(self.function, image)
    return each(lambda y: transpose(y)[0], y)


def returned(
  function: Linear, image: jax.ShapeDtypeStruct
) -> jax.ShapeDtypeStruct:
  """What a function of an image returns, without computing it.

  Raises:
    ValueError: unless a real array of three axes, of JAX operations.
  """
  try:
    # Through another: JAX keeps no reference to a function of NumPy itself.
    found = jax.eval_shape(lambda x: function(x), image)
  # What NumPy and `if` say of a traced array.
  except jax.errors.JAXTypeError as error:
    raise ValueError(
      "function must consist of JAX operations, jnp in place of np and "
      f"jnp.where in place of if: {first_line(error).split('. ')[0]}"
    ) from error
  shape = tuple(getattr(found, "shape", ()))
  real = len(shape) == 3 and jnp.issubdtype(found.dtype, jnp.floating)
  if not real or not all(shape):
    raise ValueError(
      f"function must return a real array [h, w, c], got {found}; reshape it, "
      "and give a complex one as operators.real_view"
    )
  if jnp.finfo(found.dtype).bits < 32:
    raise ValueError(f"function must return float32, got {found.dtype}")
  return found


def linear(
  function: Linear,
  image_shape: tuple[int, int, int],
  *,
  adjoint: Linear | None = None,
) -> Function:
  """An operator from a linear function of one image.

  Args:
    function: f, [H, W, C] to [h, w, c], of JAX operations on real arrays; a
      complex measurement is returned as its `real_view`. A plain function is
      part of the compiled program; a `jax.tree_util.Partial` can change its
      arrays without compiling again.
    image_shape: (H, W, C).
    adjoint: f^T where it is known to be faster, [h, w, c] to [H, W, C]; None:
      JAX transposes f. Test it with `check_operator`.

  Raises:
    TypeError: if `function` is not callable.
    ValueError: if it does not return a real array of three axes, JAX cannot
      transpose it, as it can all that is linear in its operations, it has a
      constant, or its adjoint returns another shape.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> halves = lambda x: x[:4] + x[4:]  # both halves of a picture at once
    >>> operator = pj.operators.linear(halves, (8, 8, 3))
    >>> operator.measurement_shape
    (4, 8, 3)
    >>> operator.adjoint(jnp.ones((1, 4, 8, 3))).shape
    (1, 8, 8, 3)
  """
  image_shape = check_image_shape(image_shape)
  image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
  for name, given in (("function", function), ("adjoint", adjoint)):
    if given is not None and not callable(given):
      raise TypeError(f"{name} must be callable, got {type(given).__name__}")
  found = returned(function, image)
  shape = found.shape
  try:
    jax.eval_shape(jax.linear_transpose(function, image), found)
  except Exception as error:  # of any kind, from inside the function
    if adjoint is None:
      raise ValueError(
        f"function must be linear in JAX operations, it has no transpose: "
        f"{first_line(error)}"
      ) from error
  if adjoint is not None:
    back = getattr(jax.eval_shape(adjoint, found), "shape", None)
    if back != image_shape:
      raise ValueError(
        f"adjoint must return {list(image_shape)} for a measurement "
        f"{list(shape)}, got {back}"
      )
  operator = Function(
    as_pytree(function),
    None if adjoint is None else as_pytree(adjoint),
    jnp.ones(()),
    image_shape,
    shape,
  )
  return dataclasses.replace(operator, gain=probed_gain(operator))


def probed_gain(operator: Operator, seed: int = 0) -> jax.Array:
  """Fourier diagonal of A^T A from eight white probes, [H, W], > 0.

  An operator that Fourier space diagonalises shows its gain to any probe. For
  another the estimate of each frequency is noisy, and is moved towards the mean
  of its ring of radius by the share of the ring's variance that is noise.

  Args:
    operator: with forward and adjoint.
    seed: of the probes.

  Raises:
    ValueError: of an image of zeros the operator measures something else.
  """
  height, width, _ = operator.image_shape
  shape = (_PROBES, *operator.image_shape)
  probes = jax.random.normal(jax.random.key(seed), shape)

  @jax.jit
  def measured(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    constant = jnp.abs(operator.forward(jnp.zeros_like(x[0]))).max()
    return operator.adjoint(operator.forward(x)), constant

  images, constant = measured(probes)
  if constant != 0:
    raise ValueError(
      "function must be linear: of an image of zeros it returns up to "
      f"{float(constant):.3g}; subtract that from function and measurement"
    )
  f, g = (np.fft.fft2(np.asarray(a), axes=(1, 2)) for a in (probes, images))
  found, size = (f.conj() * g).real.sum(-1), (np.abs(f) ** 2).sum(-1)
  gain = found.sum(0) / size.sum(0)  # [H, W]
  half = _PROBES // 2
  halves = found[:half].sum(0) / size[:half].sum(0)
  halves = halves - found[half:].sum(0) / size[half:].sum(0)

  radius = fourier.radial_frequency(height, width) * max(height, width)
  ring = np.round(radius).astype(int)
  count = np.bincount(ring.ravel())

  def mean(values: np.ndarray) -> np.ndarray:
    return (np.bincount(ring.ravel(), values.ravel()) / count)[ring]

  centre = mean(gain)
  # The halves' difference has four times the variance of their mean.
  noise, spread = mean(halves**2) / 4, mean((gain - centre) ** 2)
  trust = np.clip(1 - noise / np.maximum(spread, 1e-30), 0, 1)
  gain = centre + trust * (gain - centre)
  # A diagonal is never negative, and a preconditioner never 0.
  return jnp.asarray(np.maximum(gain, 1e-3 * gain.mean()), jnp.float32)


def real_view(z: jax.Array) -> jax.Array:
  """Complex [..., c] as real [..., 2 c]: real parts, then imaginary parts."""
  return jnp.concatenate([z.real, z.imag], axis=-1)


def complex_view(x: jax.Array) -> jax.Array:
  """Real [..., 2 c] as complex [..., c]: what `real_view` came from."""
  half = x.shape[-1] // 2
  return jax.lax.complex(x[..., :half], x[..., half:])


def as_pytree(function: F) -> F:
  """A plain function would be an invalid leaf of what holds it."""
  plain = jax.tree_util.all_leaves([function])
  found: Any = jax.tree_util.Partial(function) if plain else function
  return found


def each(function: Linear, x: jax.Array) -> jax.Array:
  """A function of one [a, b, c] on [..., a, b, c]."""
  lead = x.shape[:-3]
  flat = x.reshape(math.prod(lead), *x.shape[-3:])
  found = jax.vmap(function)(flat)
  return found.reshape(*lead, *found.shape[1:])
