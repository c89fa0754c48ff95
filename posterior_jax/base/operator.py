"""A measurement of an image, and how a solve with it went."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# x -> K x, a linear map known by its products alone
Linear = Callable[[jax.Array], jax.Array]


class SolveInfo(NamedTuple):
  """How a linear solve went.

  Attributes:
    iterations: int32 scalar, 0 for a closed form.
    relative_residual: float32 scalar, worst ||b - K x|| / ||b|| of the batch.
  """

  iterations: jax.Array
  relative_residual: jax.Array

  @classmethod
  def closed_form(cls) -> "SolveInfo":
    """Of what needed no iteration: zeros, of the dtypes that a scan stacks."""
    return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


class Operator(abc.ABC):
  """A measurement A of an image; concrete kinds are registered pytrees.

  Linear, but for one of `operators.nonlinear`, whose `tangent` is.

  Arrays (kernels, masks, matrices) are leaves, so that new ones never retrace;
  shapes and the kind are static. Every method accepts any leading axes.
  """

  image_shape: tuple[int, int, int]  # (H, W, C), static

  @property
  @abc.abstractmethod
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, C) of one measurement."""

  @property
  def pictorial(self) -> bool:
    """Whether measured pixels are weighted means of the image's, in [-1, 1]."""
    return False

  @property
  def is_linear(self) -> bool:
    """Whether A is a matrix; else its `tangent` is."""
    return True

  def tangent(self, x: jax.Array) -> "Operator":
    """The linear operator that A is near x [..., H, W, C]: A where linear."""
    del x
    return self

  def prepared(self) -> "Operator":
    """The operator with its decomposition, where solves would take one.

    `Decomposed` then, for any number of runs; else the operator as it is.
    Worth a call outside of `jax.jit`, above all on a GPU: the decomposition is
    made on the host and in float64, where solves within a program decompose at
    every level, by the device.

    Example:
      >>> import posterior_jax as pj
      >>> operator = pj.operators.super_resolution((8, 8, 3)).prepared()
      >>> operator.svd().values.shape
      (2, 2, 1)
    """
    return self

  @property
  def margin(self) -> int:
    """Pixels of the image beyond every side of the picture, mostly 0."""
    return 0

  def interior(self, x: jax.Array) -> jax.Array:
    """What the picture shows of an image: [..., H, W, C] less the margin."""
    height, width = (n - self.margin for n in self.image_shape[:2])
    return x[..., self.margin : height, self.margin : width, :]

  @property
  def observed(self) -> jax.Array:
    """1 where the measurement holds data, broadcastable to [h, w, C]."""
    return jnp.ones((), jnp.float32)

  @property
  def gridded(self) -> bool:
    """Whether a measurement is a picture, whose spectrum a band can cut."""
    return True

  @property
  def even(self) -> bool:
    """Whether all observed pixels measure alike, borders aside, as a blur's."""
    return False

  @property
  @abc.abstractmethod
  def gram_gain(self) -> jax.Array:
    """Fourier diagonal of A^T A: gain of each frequency, [] or [H, W].

    [..., H, W, C] where every image has its own.
    """

  @property
  def gain_is_exact(self) -> bool:
    """Whether `gram_gain` is that diagonal, and no mere preconditioner."""
    return True

  @abc.abstractmethod
  def forward(self, x: jax.Array) -> jax.Array:
    """A x: [..., H, W, C] -> [..., h, w, C]."""

  @abc.abstractmethod
  def adjoint(self, y: jax.Array) -> jax.Array:
    """The exact transpose A^T y: [..., h, w, C] -> [..., H, W, C]."""

  @abc.abstractmethod
  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Solves (A^T A / noise_std^2 + P) x = rhs, P diagonal in Fourier space.

    Args:
      rhs: [..., H, W, C].
      precision: diagonal of P on the full FFT grid, [], [H, W] or
        [..., H, W, C] with axes that broadcast against rhs's, positive, in
        1/pixel^2.
      noise_std: scalar measurement noise.
      tolerance: relative residual at which conjugate gradients stop.
      max_iterations: their limit.

    Returns:
      x [..., H, W, C] and how the solve went.
    """
