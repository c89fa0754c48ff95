"""Times a training step on every mesh of the devices that are there.

  python -m experiments.mesh_speed

Settings: `configs/mesh_speed.py`. The same model, batch and first parameters on
one device and on each mesh; losses must agree, so that a speed-up is one of the
same computation. Then one long row, whose tokens the mesh splits, and a profile
of the slowest mesh. What cannot be run here is named with the reason.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from experiments.harness import record, runner
from experiments.harness.reporting.report import shown
from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing
from experiments.mesh_speed import probe, profile, report
from experiments.mesh_speed.probe import ONE
from neumann_jax import Execution, InverseSpec, ModelConfig, RuleOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is timed."""

  # "auto" takes a platform's kernels, "xla" none
  implementation: str = setting(among=("auto", "xla"))
  # axes that split all devices; "a*b" gives a 2 and b the rest
  meshes: tuple[str, ...] = setting(
    some=True, words="meshes must name at least one mesh"
  )
  rows: int = setting(at_least=1)  # of a batch
  tokens: int = setting(at_least=1)  # of a row
  # of the one row that a sequence mesh splits
  long_tokens: int = setting(at_least=1)
  layers: int = setting(at_least=1)  # every fourth is full attention
  hidden: int = setting(at_least=1)  # width of the residual stream
  intermediate: int = setting(at_least=1)  # width of the feed-forward layer
  vocabulary: int = setting(at_least=2)  # size
  # of full attention, half as many of keys and values
  heads: int = setting(at_least=2)
  key_heads: int = setting(at_least=1)  # Hk of Gated DeltaNet
  value_heads: int = setting(at_least=1)  # Hv
  dim: int = setting(at_least=1)  # width of a head, of either kind of layer
  # of activations and parameters' products
  dtype: str = setting(among=("bfloat16", "float32"))
  rate: float = setting(above=0)  # of AdamW
  # whose losses are compared; the second may compile again
  steps: int = setting(at_least=2)
  repeats: int = setting(at_least=1)  # measurements of further steps
  inner: int = setting(at_least=1)  # steps of a measurement, back to back
  seed: int  # of parameters and text

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in self.meshes:
      probe.sizes(name, 2)
    self.model()

  def model(self) -> ModelConfig:
    """The architecture."""
    return ModelConfig(
      vocab_size=self.vocabulary,
      hidden_size=self.hidden,
      intermediate_size=self.intermediate,
      num_hidden_layers=self.layers,
      num_attention_heads=self.heads,
      num_key_value_heads=self.heads // 2,
      head_dim=self.dim,
      linear_num_key_heads=self.key_heads,
      linear_num_value_heads=self.value_heads,
      linear_key_head_dim=self.dim,
      linear_value_head_dim=self.dim,
    )

  def execution(self) -> Execution:
    """How it is computed: whole kernels where there are any."""
    rule = RuleOptions(
      spec=InverseSpec("ladder", precision="float16"),
      implementation=self.implementation,
      fused=self.implementation == "auto",
    )
    return Execution(dtype=jnp.dtype(self.dtype), rule=rule, remat="full")


def mesh_speed(settings: Settings, run: record.Run) -> None:
  """Measures, writes two tables and `report.html`, prints the latter's path."""
  batch = (settings.rows, settings.tokens)
  cases = [(name, *batch) for name in (ONE, *settings.meshes)]
  cases += [(name, 1, settings.long_tokens) for name in (ONE, "sequence")]
  for case in cases:
    row = _measured(settings, case, run)
    run.write("meshes", row)
    print(report.line(row), flush=True)
  rows = run.frame("meshes")
  waits = _profile(settings, rows, run)
  pages = report.build(rows, run.frame("losses"), waits, settings, run)
  print(report.closing(rows))
  print(f"report: {shown(pages.write(run.folder / 'report.html'))}")


def _measured(
  settings: Settings, case: tuple[str, int, int], run: record.Run
) -> dict[str, Any]:
  """A row of the table of meshes; its losses go to their own."""
  name, rows, tokens = case
  devices = jax.device_count()
  axes = probe.sizes(name, devices)
  reason = None
  if axes is None:
    least = "an even number of devices, 4" if "*" in name else "2 devices"
    reason = f"needs {least} or more, got {devices}"
  job = timing.Job(
    name,
    settings.implementation,
    functools.partial(_timed, settings, axes or {}, case, run),
    reason,
  )
  used = math.prod(axes.values()) if axes else None
  about = {"rows": rows, "tokens": tokens, "devices": used}
  row = timing.row(job, about, ("speed_up", "loss_difference"))
  # One device comes first, so that its row is there for every mesh.
  one = next(
    (
      other
      for other in run.rows("meshes")
      if (other["name"], other["rows"], other["tokens"]) == (ONE, *case[1:])
    ),
    row,
  )
  row["speed_up"] = timing.ratio(one, row)
  return row


def _timed(
  settings: Settings,
  axes: dict[str, int],
  case: tuple[str, int, int],
  run: record.Run,
) -> tuple[timing.Timing, dict[str, Any]]:
  """The time of a step, and how far its losses are from one device's."""
  made = _probe(settings, axes, case)
  training = made.training
  losses: list[float] = []
  start = time.perf_counter()
  for number in range(settings.steps):
    training, loss = made.step(training, made.batch)
    losses.append(float(loss))
    if not number:
      first = time.perf_counter() - start
  seconds: list[float] = []
  for _ in range(settings.repeats):
    jax.block_until_ready(training)
    start = time.perf_counter()
    # As in training, the host enqueues a step while devices compute the last.
    for _ in range(settings.inner):
      training, loss = made.step(training, made.batch)
    jax.block_until_ready((training, loss))
    seconds.append(time.perf_counter() - start)
  about = {"name": case[0], "rows": case[1], "tokens": case[2]}
  for number, value in enumerate(losses):
    run.write("losses", about | {"step": number, "loss": value})
  found = timing.of(seconds, settings.inner, first)
  return found, {"loss_difference": _difference(losses, about, run)}


def _difference(
  losses: list[float], about: dict[str, Any], run: record.Run
) -> float | None:
  """Largest relative distance of losses from one device's, None without it."""
  one = [
    row["loss"]
    for row in run.rows("losses")
    if all(row[x] == (about | {"name": ONE})[x] for x in about)
  ]
  pairs = zip(losses, one)
  return max((abs(x - y) / abs(y) for x, y in pairs), default=None)


def _profile(
  settings: Settings, rows: pd.DataFrame, run: record.Run
) -> tuple[str, profile.Waits] | None:
  """What the slowest mesh of the batch waits for, and its name."""
  known = rows[(rows.rows == settings.rows) & (rows.name != ONE)]
  known = known[known.median_ms.notna()]
  if known.empty:
    return None
  name = known.loc[known.median_ms.idxmax(), "name"]
  axes = probe.sizes(name, jax.device_count())
  made = _probe(settings, axes or {}, (name, settings.rows, settings.tokens))
  training, _ = made.step(made.training, made.batch)  # compiles
  found = profile.of_call(
    lambda: made.step(training, made.batch), run.folder / "profile"
  )
  return None if found is None else (name, found)


def _probe(
  settings: Settings, axes: dict[str, int], case: tuple[str, int, int]
) -> probe.Probe:
  config = settings.model()
  return probe.build(
    config,
    settings.execution(),
    axes,
    probe.draw(config, *case[1:], settings.seed),
    rate=settings.rate,
    seed=settings.seed,
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the experiment; `argv` as of `runner.main`."""
  runner.main("mesh_speed", Settings, mesh_speed, argv)
