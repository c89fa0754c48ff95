"""A function that is compiled once and whose calls are timed."""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax


class Compiled:
  """Compiles at its first call, on the host; runs when its turn comes.

  Attributes:
    compile_seconds: of the first call, others compiling beside it.
    seconds: of the last call, compiled, until its result is there.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    turn: AbstractContextManager[Any] | None = None,
  ):
    """Compiles nothing yet.

    Args:
      function: of arrays; later arguments have the first ones' shapes.
      turn: held while the device works, as a lock, so that times are its own.
    """
    self._function = jax.jit(function)
    self._turn = contextlib.nullcontext() if turn is None else turn
    self._compiled: Callable[..., Any] | None = None
    self.compile_seconds = self.seconds = 0.0

  def __call__(self, *arguments: Any) -> Any:
    """The function's result."""
    if self._compiled is None:
      start = time.monotonic()
      self._compiled = self._function.lower(*arguments).compile()
      self.compile_seconds = time.monotonic() - start
    with self._turn:
      start = time.monotonic()
      result = jax.block_until_ready(self._compiled(*arguments))
      self.seconds = time.monotonic() - start
    return result
