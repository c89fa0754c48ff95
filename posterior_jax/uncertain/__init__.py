"""Blurs whose kernel is not quite known: it is drawn with the picture.

A sampler goes from level to level with a kernel of a family, and after each one
the kernel is drawn anew from what the level's prediction c leaves to explain:
`family` makes the kernels, `likelihood` says how likely each of them is,
`sampler` draws. The image itself is integrated out: given an image that fits y
by the last kernel, no other kernel would ever do.
"""

from posterior_jax.uncertain.family import Kernels as Kernels
from posterior_jax.uncertain.family import turned as turned
from posterior_jax.uncertain.likelihood import log_likelihood as log_likelihood
from posterior_jax.uncertain.likelihood import with_kernel as with_kernel
from posterior_jax.uncertain.sampler import UncertainState as UncertainState
from posterior_jax.uncertain.sampler import uncertain as uncertain

__all__ = (
  "Kernels",
  "UncertainState",
  "log_likelihood",
  "turned",
  "uncertain",
  "with_kernel",
)
