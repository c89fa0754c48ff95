"""Times the whole delta rule and takes its errors, beside other people's.

  python -m experiments.rule_speed

Settings: `configs/rule_speed.py`. Every shape forward and with gradients, under
every kind of gate; then the errors of outputs and gradients against a float64
recurrence, on keys that make or break a chunk inverse. All rules run in one
process on the same buffers; one that is missing is named with the reason.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.harness import record, runner, timing
from experiments.peers import gpu
from experiments.rule_speed import contenders, problems
from experiments.rule_speed.contenders import FORWARD, GRADIENTS, Contender
from experiments.rule_speed.problems import Shape
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import Precision


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is timed and evaluated."""

  implementation: str  # "gpu" for the kernels, "xla" for the tests on a CPU
  # (rows, tokens, key heads, value heads), each timed
  shapes: tuple[tuple[int, ...], ...]
  gates: tuple[str, ...]  # "usual", or the log decay of every token, as text
  error_shape: tuple[int, ...]  # of the problems whose errors are taken
  families: tuple[str, ...]  # of keys, see `experiments.data.key_families`
  beta_max: tuple[float, ...]  # largest betas of the errors
  dim: int  # width of keys and values
  precision: Precision  # of the ladder's operands
  seed: int  # of every draw
  repeats: int  # measurements of each time
  inner: int  # back-to-back calls in a measurement
  skip: tuple[str, ...]  # names of rules to leave out

  def __post_init__(self) -> None:
    if self.implementation not in ("gpu", "xla"):
      raise ValueError(
        f"implementation must be gpu or xla, got {self.implementation!r}"
      )
    for shape in (*self.shapes, self.error_shape):
      if len(shape) != 4 or min(shape) < 1 or shape[3] % shape[2]:
        raise ValueError(
          "a shape must be (rows, tokens, key heads, value heads), the value "
          f"heads a whole multiple of the key heads, got {shape}"
        )

  def rules(self) -> list[Contender]:
    """What is compared."""
    spec = InverseSpec("ladder", precision=self.precision)
    rules = contenders.all_of(spec, self.implementation)
    return [
      rule._replace(reason="left out by skip")
      if rule.name in self.skip
      else rule
      for rule in rules
    ]


def rule_speed(settings: Settings, run: record.Run) -> None:
  """Times and evaluates everything; writes `speed.csv` and `errors.csv`."""
  platform = jax.default_backend()
  if settings.implementation == "gpu" and platform != "gpu":
    print(
      f"rule_speed: nothing was timed, because jax finds no GPU here (its "
      f"devices are of platform {platform!r})"
    )
    return
  run.environment["versions"] |= gpu.versions()
  rules = settings.rules()
  for row in _times(settings, rules):
    run.write("speed", row)
    print(_line(row), flush=True)
  for row in _errors(settings, rules):
    run.write("errors", row)
    print(_line(row), flush=True)
  print(f"tables: {run.folder}")


def _times(
  settings: Settings, rules: list[Contender]
) -> Iterator[dict[str, Any]]:
  for shape in settings.shapes:
    for gates in settings.gates:
      sets = [
        problems.draw(
          Shape(*shape), dim=settings.dim, seed=settings.seed + n, gates=gates
        )
        for n in range(timing.INPUT_SETS)
      ]
      for rule in rules:
        for which in (FORWARD, GRADIENTS):
          job = timing.Job(
            rule.name,
            settings.implementation,
            functools.partial(_measured, settings, rule, which, sets),
            rule.reason,
          )
          about = {"shape": _text(shape), "gates": gates, "pass": which}
          yield timing.row(job, about, ("peak_mb",))


def _measured(
  settings: Settings, rule: Contender, which: str, sets: list[problems.Problem]
) -> tuple[timing.Timing, dict[str, Any]]:
  return contenders.measured(
    rule.prepare(which, sets), repeats=settings.repeats, inner=settings.inner
  )


def _errors(
  settings: Settings, rules: list[Contender]
) -> Iterator[dict[str, Any]]:
  for family in settings.families:
    for gates in settings.gates:
      for beta_max in settings.beta_max:
        problem = problems.draw(
          Shape(*settings.error_shape),
          dim=settings.dim,
          seed=settings.seed,
          family=family,
          gates=gates,
          beta_max=beta_max,
        )
        truth = problems.exact(problem)
        for rule in rules:
          found, note = None, rule.reason or ""
          if not note:
            found, note = timing.attempt(
              functools.partial(_found, rule, problem, truth)
            )
          yield {
            "name": rule.name,
            "family": family,
            "gates": gates,
            "beta_max": beta_max,
            **(found or dict.fromkeys(problems.COLUMNS)),
            "note": note,
          }


def _found(
  rule: Contender, problem: problems.Problem, truth: list[np.ndarray]
) -> dict[str, float]:
  prepared = rule.prepare(GRADIENTS, [problem])
  out = prepared.call(*prepared.inputs[0])
  prepared.wait(out)
  return problems.errors(prepared.found(out), truth)


def _text(shape: Sequence[int]) -> str:
  rows, tokens, key_heads, value_heads = shape
  return f"{rows} x {tokens}, {key_heads}/{value_heads}"


def _line(row: dict[str, Any]) -> str:
  """A row as it is printed: what it is, its numbers, why there are none."""
  skipped = ("implementation", "device", "calls", "first_s")
  shown = []
  for name, x in row.items():
    if x is None or x == "" or name in skipped:
      continue
    shown.append(f"{name} {x:.4g}" if isinstance(x, float) else str(x))
  return "  ".join(shown)


def main(argv: Sequence[str] | None = None) -> None:
  """Shares the GPU's memory with torch, then runs the experiment."""
  gpu.share_memory()
  runner.main("rule_speed", Settings, rule_speed, argv)
