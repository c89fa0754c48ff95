"""Times the whole delta rule and takes its errors, beside other people's.

  python -m experiments.rule_speed

Settings: `configs/rule_speed.py`. Every shape forward and with gradients, under
every kind of gate; then the errors of outputs and gradients against a float64
recurrence, on keys that make or break a chunk inverse; then how many entries
of ours are not finite on many such sequences, and whether equal calls give
equal bits. All rules run in one
process on the same buffers; one that is missing is named with the reason.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.harness import record, runner
from experiments.harness.settings import setting
from experiments.harness.speed import timing
from experiments.harness.speed.settings import SpeedSettings
from experiments.peers import gpu
from experiments.rule_speed import contenders, problems, sweep
from experiments.rule_speed.contenders import FORWARD, GRADIENTS, Contender
from experiments.rule_speed.problems import Shape
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SpeedSettings):
  """What is timed and evaluated."""

  # (rows, tokens, key heads, value heads), each timed
  shapes: tuple[tuple[int, ...], ...]
  gates: tuple[str, ...]  # "usual", or the log decay of every token, as text
  error_shape: tuple[int, ...]  # of the problems whose errors are taken
  families: tuple[str, ...]  # of keys, see `experiments.data.key_families`
  beta_max: tuple[float, ...]  # largest betas of the errors
  dim: int = setting(at_least=1)  # width of keys and values
  precision: Precision  # of the ladder's operands
  skip: tuple[str, ...]  # names of rules to leave out
  # hard sequences of ours, forward and backward; 0 for none
  hard_sequences: int = setting(at_least=0)
  hard_tokens: int = setting(at_least=1)  # of each
  hard_calls: int = setting(at_least=1)  # of each kind, whose bits must agree

  def __post_init__(self) -> None:
    super().__post_init__()
    InverseSpec("ladder", precision=self.precision)  # which refuses others
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
    left_out = {name: "left out by skip" for name in self.skip}
    return [r._replace(reason=left_out.get(r.name, r.reason)) for r in rules]


def rule_speed(settings: Settings, run: record.Run) -> None:
  """Times and evaluates everything; writes a table of each."""
  if timing.without_gpu("rule_speed", settings.implementation):
    return
  run.environment["versions"] |= gpu.versions()
  rules = settings.rules()
  for row in _times(settings, rules):
    run.write("speed", row)
    print(_line(row), flush=True)
  for row in _errors(settings, rules):
    run.write("errors", row)
    print(_line(row), flush=True)
  for row in _hard(settings, rules[0]):
    run.write("hard", row)
    print(_line(row), flush=True)
  print(f"tables: {run.folder}")


def _times(
  settings: Settings, rules: list[Contender]
) -> Iterator[dict[str, Any]]:
  for shape, gates in itertools.product(settings.shapes, settings.gates):
    kind: Any = (Shape(*shape), "independent", gates, 1.0)
    sets = [
      problems.on_device(*kind, dim=settings.dim, seed=settings.seed + n)
      for n in range(timing.INPUT_SETS)
    ]
    for rule, which in itertools.product(rules, (FORWARD, GRADIENTS)):
      measured = functools.partial(_measured, settings, rule, which, sets)
      where = rule.name, settings.implementation
      about = {"shape": _text(shape), "gates": gates, "pass": which}
      job = timing.Job(*where, measured, rule.reason)
      yield timing.row(job, about, ("peak_mb",))


def _measured(
  settings: Settings, rule: Contender, which: str, sets: list[problems.Problem]
) -> tuple[timing.Timing, dict[str, Any]]:
  """The timing of a pass and its peak."""
  call, inputs, wait, peak_mb, _ = rule.prepare(which, sets)
  taken = settings.measure(call, inputs, wait=wait)
  return taken, {"peak_mb": peak_mb()}


def _errors(
  settings: Settings, rules: list[Contender]
) -> Iterator[dict[str, Any]]:
  names = ("family", "gates", "beta_max")
  kinds = settings.families, settings.gates, settings.beta_max
  shape = Shape(*settings.error_shape)
  for kind in itertools.product(*kinds):
    about: Any = dict(zip(names, kind))
    problem = problems.draw(
      shape, dim=settings.dim, seed=settings.seed, **about
    )
    truth = problems.exact(problem)
    for rule in rules:
      job = functools.partial(_found, rule, problem, truth)
      found, note = (None, rule.reason) if rule.reason else timing.attempt(job)
      errors = found or dict.fromkeys(problems.COLUMNS)
      yield {"name": rule.name, **about, **errors, "note": note}


def _hard(settings: Settings, ours: Contender) -> Iterator[dict[str, Any]]:
  if not settings.hard_sequences or ours.reason:
    return
  kinds = settings.families, settings.gates, settings.beta_max
  yield from sweep.swept(
    lambda problem: ours.prepare(GRADIENTS, [problem]).call,
    list(itertools.product(*kinds)),
    sequences=settings.hard_sequences,
    tokens=settings.hard_tokens,
    heads=Shape(*settings.error_shape),
    calls=settings.hard_calls,
    dim=settings.dim,
    seed=settings.seed,
  )


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
