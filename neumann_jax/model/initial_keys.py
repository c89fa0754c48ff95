"""The keys of initial parameters, of which `nnx.Rngs` keeps the count.

That count is an array. In a trace flax looks for its sharding at every draw.
jax answers with an error, for whose message it searches all equations so far:
most of the time in which a deep model is traced for its shapes. Here the draws
of a model are counted by Python, and the array is told at the end.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx


class InitialKeys(nnx.Rngs):
  """The keys that `nnx.Rngs` would give, stream by stream, in their order.

  Args:
    rngs: whose streams are drawn from; it must not be used before `returned`.
  """

  def __init__(self, rngs: nnx.Rngs) -> None:
    for name, stream in rngs.items():
      setattr(self, name, _Counted(stream))

  def returned(self) -> None:
    """Tells the streams how many of their keys were drawn.

    From then on they count as flax does: a module that kept them may draw in
    a compiled call, where what Python counts would be a constant.
    """
    for _, stream in self.items():
      stream.returned()


class _Counted(nnx.RngStream):
  """A stream with the key and the count of another, which it counts for."""

  def __init__(self, stream: nnx.RngStream) -> None:
    self.tag, self.key, self.count = stream.tag, stream.key, stream.count
    self._drawn: int | None = 0

  def __call__(self) -> jax.Array:
    if self._drawn is None:
      return super().__call__()
    count = self.count[...] + np.uint32(self._drawn)
    self._drawn += 1
    return jax.random.fold_in(self.key[...], count)

  def returned(self) -> None:
    self._told()
    self._drawn = None

  # What a module keeps of these is flax's own stream, as under `scan_layers`.

  def split(self, k: int | tuple[int, ...]) -> nnx.RngStream:
    return self._told().split(k)

  def fork(self, **how: Any) -> nnx.RngStream:
    return self._told().fork(**how)

  def broadcast(self, k: int | tuple[int, ...]) -> nnx.RngStream:
    return self._told().broadcast(k)

  def _told(self) -> nnx.RngStream:
    """The stream as flax has it, told what was drawn so far."""
    if self._drawn:
      self.count[...] += np.uint32(self._drawn)
      self._drawn = 0
    plain = nnx.RngStream(self.key[...], tag=self.tag)
    plain.key, plain.count = self.key, self.count
    return plain
