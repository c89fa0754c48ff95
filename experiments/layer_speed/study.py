"""Times a Gated DeltaNet layer on a GPU with each inverse, beside fla.

  python -m experiments.layer_speed

Settings: `configs/layer_speed.py`. The whole block, the rule in it and the
inverse in that, in one process on the same buffers as fla's rule and the layer
of transformers. A table and the report's path are printed last. On a machine
without a GPU one sentence says so.
"""

import dataclasses
from collections.abc import Sequence

from experiments.harness import record, runner
from experiments.harness.progress import Progress
from experiments.harness.settings import setting
from experiments.harness.speed import timing
from experiments.harness.speed.settings import SpeedSettings
from experiments.layer_speed import cases as layer_cases
from experiments.layer_speed import parts, report
from experiments.peers import gpu
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SpeedSettings):
  """What is timed, on what."""

  tokens: tuple[int, ...]  # lengths of the sequence, multiples of C
  hidden: int = setting(at_least=1)  # width of the residual stream
  key_heads: int = setting(at_least=1)  # Hk
  value_heads: int = setting(at_least=1)  # Hv, a whole multiple of Hk
  dim: int = setting(at_least=1)  # Dk and Dv
  conv_width: int = setting(at_least=1)  # taps of the short convolution
  chunk_size: int  # C, a power of two
  # names of the inverses, see `cases.parse`; the first is what the others are
  # compared with
  specs: tuple[str, ...] = setting(
    some=True, words="specs must name at least one inverse"
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    check_chunk_size(self.chunk_size)
    self._check_tokens()
    if self.value_heads % self.key_heads:
      raise ValueError(
        "value_heads must be a whole multiple of key_heads, got "
        f"{self.value_heads} and {self.key_heads}"
      )
    self.cases()

  def _check_tokens(self) -> None:
    if not self.tokens:
      raise ValueError("tokens must name at least one length")
    for length in self.tokens:
      if length < 1 or length % self.chunk_size:
        raise ValueError(
          f"tokens must be multiples of chunk_size = {self.chunk_size}, got "
          f"{length}"
        )
    size = 2 * min(self.tokens) * self.hidden * timing.INPUT_SETS
    self.check_size("tokens must be more: the input sets are", size)

  def cases(self) -> list[layer_cases.LayerCase]:
    """The cases that the names stand for."""
    how = self.chunk_size, self.implementation
    return [layer_cases.parse(name, *how) for name in self.specs]


def layer_speed(settings: Settings, run: record.Run) -> None:
  """Times everything, writes `layer.csv` and `report.html`, prints its path."""
  if timing.without_gpu("layer_speed", settings.implementation):
    return
  run.environment["versions"] |= gpu.versions()
  cases = settings.cases()
  with Progress(parts.units(settings, cases), label="layer_speed") as tick:
    for row in parts.layer_part(settings, cases, tick):
      run.write("layer", row)
  rows = run.frame("layer")
  pages = report.build(rows, settings, run.environment)
  print(report.closing(rows, settings))
  pages.leave(run.folder)


def main(argv: Sequence[str] | None = None) -> None:
  """Shares the GPU's memory with torch, then runs the experiment."""
  gpu.share_memory()
  runner.main("layer_speed", Settings, layer_speed, argv)
