"""The keys of initial parameters, of which `nnx.Rngs` keeps the count.

That count is an array. In a trace flax looks for its sharding at every draw,
which jax denies in a sentence that it searches all equations so far for: most
of the time in which a deep model is traced for its shapes. Here the draws of a
model are counted by Python, and the array is told at the end.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx


class InitialKeys:
  """The keys that a stream would give, in their order.

  Args:
    rngs: whose stream "params" is drawn from; it must not be used before
      `returned`.
  """

  def __init__(self, rngs: nnx.Rngs) -> None:
    self._stream: Any = rngs.params
    self._key = self._stream.key[...]
    self._first = self._stream.count[...]
    self._drawn = 0

  def params(self) -> jax.Array:
    """The next key."""
    count = self._first + np.uint32(self._drawn)
    self._drawn += 1
    return jax.random.fold_in(self._key, count)

  def returned(self) -> None:
    """Tells the stream how many of its keys were drawn."""
    self._stream.count[...] = self._first + np.uint32(self._drawn)
