"""Signs of life from inside a step, which may take minutes.

A step is one compiled program. A large picture is denoised in tiles, one after
another, and each tile that is done calls back to the host.
"""

import dataclasses
from collections.abc import Callable

import jax

from experiments.harness.progress import silent
from posterior_jax.base import Denoiser


class Heartbeat:
  """Counts the tiles of a step; says so by `show`, which takes a few words."""

  def __init__(self) -> None:
    """Shows nothing until it is told where."""
    self.show: Callable[[str], None] = silent
    self._label = ""
    self._expected = 0.0
    self._count = 0

  def begin(self, label: str, evaluations: float) -> None:
    """A step begins that takes so many evaluations of the whole picture."""
    self._label, self._expected, self._count = label, evaluations, 0

  def beat(self, share: float) -> None:
    """A tile is done, the given share of the picture."""
    self._count += 1
    done = min(self._count * share / max(self._expected, 1e-9), 1)
    self.show(f"{self._label}, {100 * done:.0f} % of a step")

  def watched(self, denoise: Denoiser, share: float) -> "Watched":
    """A tile's denoiser that beats whenever it is called, in a VJP as well."""
    return Watched(denoise, self, share)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched:
  """Made by `Heartbeat.watched`."""

  denoise: Denoiser
  heartbeat: Heartbeat = dataclasses.field(metadata={"static": True})
  share: float = dataclasses.field(metadata={"static": True})

  def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """D(x, sigma)."""
    # With an operand of the loop: without one it could run ahead of the tiles.
    jax.debug.callback(lambda _: self.heartbeat.beat(self.share), x[0, 0, 0, 0])
    return self.denoise(x, sigma)
