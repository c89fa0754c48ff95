"""Times training, prefill and decoding of whole models with random weights.

  python -m experiments.model_speed

Settings: `configs/model_speed.py`. On whatever device there is. What does not
fit into its memory is named with the reason.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from experiments.harness import record, runner
from experiments.harness.reporting.report import shown
from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing
from experiments.model_speed import passes, report, shapes
from neumann_jax import Execution, InverseSpec, RuleOptions
from neumann_jax.execution import REMAT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is timed."""

  # "auto" takes a platform's kernels, "xla" none
  implementation: str = setting(among=("auto", "xla"))
  models: tuple[str, ...] = setting(some=True, among=tuple(shapes.MODELS))
  passes: tuple[str, ...] = setting(some=True, among=tuple(passes.PASSES))
  tokens: int = setting(at_least=1)  # of a training row and of a prompt
  rows: tuple[int, ...] = setting(at_least=1, some=True)  # that are decoded
  prompt: int = setting(at_least=1)  # tokens before what is decoded
  written: int = setting(at_least=1)  # tokens decoded
  # of the caches that are decoded with, tokens a row; 0 is what they need
  capacities: tuple[int, ...] = setting(at_least=0, some=True)
  scanned: bool  # whether layers that are decoded stand in one stack
  remat: str = setting(among=REMAT)  # of training
  # of weights, activations and products
  dtype: str = setting(among=("bfloat16", "float32"))
  repeats: int = setting(at_least=1)  # of each time
  seed: int  # of weights and text

  def __post_init__(self) -> None:
    super().__post_init__()
    needed = self.prompt + self.written
    for capacity in self.capacities:
      if 0 < capacity < needed:
        raise ValueError(
          f"capacities must be 0 or hold prompt and written, {needed} tokens, "
          f"got {capacity}"
        )

  def execution(self, name: str, which: str) -> Execution:
    """How a pass of a model is computed."""
    depth = shapes.MODELS[name].num_hidden_layers
    train = which == "train"
    rule = RuleOptions(
      spec=InverseSpec("ladder", precision="float16"),
      implementation=self.implementation,
      fused=self.implementation == "auto",
    )
    return Execution(
      dtype=jnp.dtype(self.dtype),
      param_dtype=jnp.dtype(self.dtype),
      rule=rule,
      attention=self.implementation,  # type: ignore[arg-type]
      # One layer of a kind is compiled; a step of decoding would copy each
      # layer's weights out of the stack.
      scan_layers=depth > 4 if train else self.scanned and which == "decode",
      remat=self.remat if train else "none",  # type: ignore[arg-type]
    )


def model_speed(settings: Settings, run: record.Run) -> None:
  """Measures, writes a table and `report.html`, prints the latter's path."""
  for row in _rows(settings):
    run.write("models", row)
    print(report.line(row), flush=True)
  rows = run.frame("models")
  page = report.build(rows, settings, run)
  print(report.closing(rows))
  print(f"report: {shown(page.write(run.folder / 'report.html'))}")


def _rows(settings: Settings) -> Iterator[dict[str, Any]]:
  for name in settings.models:
    for which in settings.passes:
      for options in _options(settings, which):
        job = timing.Job(
          name,
          settings.implementation,
          functools.partial(_measured, settings, name, which, options),
        )
        about = {"pass": which, "rows": 1, "capacity": None} | {
          x: options[x] for x in ("rows", "capacity") if x in options
        }
        yield timing.row(job, about, report.EVALUATED)


def _options(settings: Settings, which: str) -> Iterator[dict[str, Any]]:
  """What a pass is called with, but for the model."""
  every = {"repeats": settings.repeats, "seed": settings.seed}
  if which != "decode":
    yield every | {"tokens": settings.tokens}
    return
  every |= {"tokens": settings.written, "prompt": settings.prompt}
  needed = settings.prompt + settings.written
  for rows, capacity in itertools.product(settings.rows, settings.capacities):
    yield every | {"rows": rows, "capacity": capacity or needed}


def _measured(
  settings: Settings, name: str, which: str, options: dict[str, Any]
) -> tuple[timing.Timing, dict[str, Any]]:
  config, execution = shapes.MODELS[name], settings.execution(name, which)
  found = passes.PASSES[which](config, execution, **options)
  return found.timing, report.evaluated(found, timing.device_name())


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the experiment; `argv` as of `runner.main`."""
  runner.main("model_speed", Settings, model_speed, argv)
