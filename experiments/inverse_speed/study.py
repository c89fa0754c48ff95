"""Times the chunk inverse on a GPU beside a copy of its bytes, XLA and fla.

  python -m experiments.inverse_speed

Settings: `configs/inverse_speed.py`. Everything runs in one process on the
same buffers. A table and the report's path are printed last. On a machine
without a GPU one sentence says so.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.harness import record, runner
from experiments.harness.progress import Progress
from experiments.harness.settings import setting
from experiments.harness.speed import timing
from experiments.harness.speed.settings import SpeedSettings
from experiments.inverse_speed import (
  cases,
  inverse_part,
  overflow_part,
  report,
  wy_part,
)
from experiments.peers import gpu
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size

PARTS = ("inverse", "stage", "sweep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SpeedSettings):
  """What is timed, on what."""

  parts: tuple[str, ...] = setting(among=PARTS, some=True)
  # matrices in a batch, of the inverse and of a block of the sweep
  count: int = setting(at_least=1)
  chunk_size: int  # C, a power of two
  # distinct chunks per family, decay and range of beta
  draws: int = setting(at_least=1)
  specs: tuple[str, ...]  # names of the inverses, see `cases.parse`
  stage_specs: tuple[str, ...]  # names of the inverses inside the stage
  tokens: int = setting(at_least=1)  # T of the stage, a multiple of C
  heads: int = setting(at_least=1)  # of its keys and of its values
  dim: int = setting(at_least=1)  # width of its keys and of its values
  # names of the inverses whose overflows are counted
  sweep_specs: tuple[str, ...]
  # matrices of the sweep, at least; rounded up to whole batches
  sweep_count: int = setting(at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    check_chunk_size(self.chunk_size)
    self._check_sizes()
    for names in (self.specs, self.stage_specs, self.sweep_specs):
      self.cases(names)

  def _check_sizes(self) -> None:
    least = inverse_part.base_count(self.draws)
    if self.count < least:
      raise ValueError(
        f"count must be at least {least} to hold {self.draws} draws of every "
        f"family, decay and range of beta, got {self.count}"
      )
    if self.tokens % self.chunk_size:
      raise ValueError(
        f"tokens must be a multiple of chunk_size = {self.chunk_size}, got "
        f"{self.tokens}"
      )
    batch = 4 * self.count * self.chunk_size**2
    self.check_size("count must be larger: a batch is", batch)
    stage = 2 * self.tokens * self.heads * self.dim
    self.check_size("tokens must be larger: a batch is", stage)

  def cases(self, names: Sequence[str]) -> list[cases.Case]:
    """The cases that names stand for."""
    how = self.chunk_size, self.implementation
    return [cases.parse(name, *how) for name in names]


def inverse_speed(settings: Settings, run: record.Run) -> None:
  """Runs the parts, writes tables and `report.html`, prints its path."""
  if timing.without_gpu("inverse_speed", settings.implementation):
    return
  run.environment["versions"] |= gpu.versions()
  parts: dict[str, tuple[Callable[..., Iterator[Any]], tuple[str, ...]]] = {
    "inverse": (inverse_part.inverse_part, settings.specs),
    "stage": (wy_part.stage_part, settings.stage_specs),
    "sweep": (overflow_part.sweep_part, settings.sweep_specs),
  }
  extra = {"inverse": 4, "stage": 4, "sweep": 0}  # drawing, copies, limit, fla
  total = sum(extra[name] + len(parts[name][1]) for name in settings.parts)
  with Progress(total, label="inverse_speed") as tick:
    for name in settings.parts:
      measure, names = parts[name]
      for row in measure(settings, settings.cases(names), tick):
        run.write(name, row)
  found = {name: run.frame(name) for name in settings.parts}
  pages = report.build(found, settings, run.environment)
  print(report.closing(found, settings))
  pages.leave(run.folder)


def main(argv: Sequence[str] | None = None) -> None:
  """Shares the GPU's memory with torch, then runs the experiment."""
  gpu.share_memory()
  runner.main("inverse_speed", Settings, inverse_speed, argv)
