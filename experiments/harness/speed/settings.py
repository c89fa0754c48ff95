"""What every study of speed is told: where it runs, how often it measures."""

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedSettings(Checked):
  """Settings that the studies of speed share."""

  # "gpu" for the kernels, "xla" for the tests on a CPU
  implementation: str = setting(among=("gpu", "xla"))
  seed: int  # of every draw
  repeats: int = setting(at_least=1)  # measurements of each time
  inner: int = setting(at_least=1)  # back-to-back calls in a measurement

  def measure(
    self, run: Callable[..., Any], sets: Any, **options: Any
  ) -> timing.Timing:
    """Times `run` on input sets; options of `timing.measure`."""
    return timing.measure(
      run, sets, repeats=self.repeats, inner=self.inner, **options
    )

  def check_size(self, words: str, size: int) -> None:
    """Refuses what a GPU's cache would hold: `size` bytes, in `words`."""
    if self.implementation == "gpu" and size < timing.LEAST_BYTES:
      raise ValueError(
        f"{words} {size / 1e6:.0f} MB, and below "
        f"{timing.LEAST_BYTES / 1e6:.0f} MB a GPU's cache would be timed"
      )
