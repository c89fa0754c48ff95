"""Times a Gated DeltaNet layer on a GPU with each inverse, beside fla.

  python -m experiments.layer_speed

Settings: `configs/layer_speed.py`. The whole block, the rule in it and the
inverse in that, in one process on the same buffers as fla's rule and the layer
of transformers. A table and the report's path are printed last. On a machine
without a GPU one sentence says so.
"""

import dataclasses
from collections.abc import Sequence

import jax

from experiments.harness import record, runner, timing
from experiments.harness.progress import Progress
from experiments.harness.report import shown
from experiments.layer_speed import cases as layer_cases
from experiments.layer_speed import parts
from experiments.layer_speed import report as layer_report
from experiments.peers import gpu
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is timed, on what.

  Attributes:
    implementation: "gpu" for the kernels, "xla" for the tests on a CPU.
    tokens: lengths of the sequence, multiples of C.
    hidden: width of the residual stream.
    key_heads: Hk.
    value_heads: Hv, a whole multiple of Hk.
    dim: Dk and Dv.
    conv_width: taps of the short convolution.
    chunk_size: C, a power of two.
    seed: of every draw.
    repeats: measurements of each time.
    inner: back-to-back calls in a measurement.
    specs: names of the inverses, see `layer_cases.parse`; the first is what
      the others are compared with.
  """

  implementation: str
  tokens: tuple[int, ...]
  hidden: int
  key_heads: int
  value_heads: int
  dim: int
  conv_width: int
  chunk_size: int
  seed: int
  repeats: int
  inner: int
  specs: tuple[str, ...]

  def __post_init__(self) -> None:
    if self.implementation not in ("gpu", "xla"):
      raise ValueError(
        f"implementation must be gpu or xla, got {self.implementation!r}"
      )
    check_chunk_size(self.chunk_size)
    for name in _COUNTS:
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    self._check_tokens()
    if self.value_heads % self.key_heads:
      raise ValueError(
        "value_heads must be a whole multiple of key_heads, got "
        f"{self.value_heads} and {self.key_heads}"
      )
    if not self.specs:
      raise ValueError("specs must name at least one inverse")
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
    if self.implementation == "gpu" and size < timing.LEAST_BYTES:
      raise ValueError(
        f"tokens must be more: the input sets are {size / 1e6:.0f} MB, and "
        f"below {timing.LEAST_BYTES / 1e6:.0f} MB a GPU's cache would be "
        "timed"
      )

  def cases(self) -> list[layer_cases.Case]:
    """The cases that the names stand for."""
    return [
      layer_cases.parse(name, self.chunk_size, self.implementation)
      for name in self.specs
    ]


_COUNTS = (
  "hidden",
  "key_heads",
  "value_heads",
  "dim",
  "conv_width",
  "repeats",
  "inner",
)


def layer_speed(settings: Settings, run: record.Run) -> None:
  """Times everything, writes `layer.csv` and `report.html`, prints its path."""
  platform = jax.default_backend()
  if settings.implementation == "gpu" and platform != "gpu":
    print(
      f"layer_speed: nothing was timed, because jax finds no GPU here (its "
      f"devices are of platform {platform!r})"
    )
    return
  run.environment["versions"] |= gpu.versions()
  cases, rows = settings.cases(), []
  total = parts.units(settings, cases)
  with Progress(total, label="layer_speed") as tick:
    for row in parts.layer_part(settings, cases, tick):
      rows.append(row)
      run.write("layer", row._asdict())
  report = layer_report.build(rows, settings, run.environment)
  print(layer_report.closing(rows, settings))
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")


def main(argv: Sequence[str] | None = None) -> None:
  """Shares the GPU's memory with torch, then runs the experiment.

  Args:
    argv: as of `runner.main`.
  """
  gpu.share_memory()
  runner.main("layer_speed", Settings, layer_speed, argv)
