"""A function of every measured pixel, as of its noise or of its loss."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from posterior_jax.noise.measured import OfPixels
from posterior_jax.noise.weighted import Weighted
from posterior_jax.operators.smooth_function import WithoutMatrix
from posterior_jax.short_repr import short_repr


class Link(Protocol):
  """A smooth function of every measured pixel; a pytree."""

  def __call__(self, u: jax.Array) -> jax.Array:
    """Of pixels u, [..., h, w, c]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linked(OfPixels, WithoutMatrix):
  """g(A x), g a function of every measured pixel.

  Attributes:
    operator: A.
    link: g.
  """

  link: Link

  __repr__ = short_repr

  def forward(self, x: jax.Array) -> jax.Array:
    """g(A x)."""
    return self.link(self.operator.forward(x))

  def tangent(self, x: jax.Array) -> Weighted:
    """g'(A x) A, A at x."""
    u = self.operator.forward(x)
    _, slope = jax.jvp(self.link, (u,), (jnp.ones_like(u),))
    return Weighted(self.operator.tangent(x), slope)
