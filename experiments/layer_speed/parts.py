"""Times the layer, its rule and its inverse at one length, row by row.

A part returns rows, never prints, and goes on where a case fails: the row then
says why. Programs of one length are compiled together, in threads, before any
of them is timed.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.harness import timing as gpu_timing
from experiments.harness.progress import Tick
from experiments.harness.timing import Timing
from experiments.inverse_speed.inverse_part import device_name
from experiments.layer_speed import cases as layer_cases
from experiments.layer_speed.cases import Case, Inputs
from experiments.peers import gpu, transformers_block

BLOCK, RULE, INVERSE = PARTS = ("block", "rule", "inverse")
FLA = "fla"
TRANSFORMERS_FLA = "transformers with fla"
TRANSFORMERS = "transformers in torch"


class LayerRow(NamedTuple):
  """One thing timed at one length.

  Attributes:
    part: one of PARTS.
    name: of the case or the rival.
    implementation: "gpu", "xla", "auto", "fla" or "torch".
    tokens: T of the sequence.
    chunk_size: C.
    device: that ran it.
    median_ms: milliseconds a call, over the repeats.
    lowest_ms: the fastest.
    highest_ms: the slowest.
    calls: back-to-back calls in a measurement.
    share: of the inverse: its time over that of the block around it.
    error: RMS error of the output over the output's RMS, against the same
      computation in float32 at highest precision.
    memory_mb: megabytes of intermediate results, 10^6 bytes.
    note: why something is missing.
  """

  part: str
  name: str
  implementation: str
  tokens: int
  chunk_size: int
  device: str
  median_ms: float | None
  lowest_ms: float | None
  highest_ms: float | None
  calls: int | None
  share: float | None
  error: float | None
  memory_mb: float | None
  note: str


class Program(NamedTuple):
  """Something of ours to time.

  Attributes:
    part: one of PARTS.
    case: which inverse.
    run: jitted.
    sets: input sets.
  """

  part: str
  case: Case
  run: jax.stages.Wrapped
  sets: Sequence[tuple]


class Truth(NamedTuple):
  """Outputs in float32 at highest precision, by part.

  Attributes:
    block: [1, T, hidden].
    rule: [1, T, Hv, Dv].
  """

  block: jax.Array
  rule: jax.Array


def layer_part(
  settings: Any, cases: Sequence[Case], tick: Tick
) -> Iterator[LayerRow]:
  """Times every case and every rival at every length.

  Args:
    settings: of `experiments.layer_speed`.
    cases: what to time.
    tick: called before each.

  Yields:
    One row for every part of every case, then the rivals, by length.
  """
  tick("drawing")
  drawn = layer_cases.draw(settings)
  block = layer_cases.block(settings, cases[0])
  parameters = nnx.split(block)[1]
  for tokens in settings.tokens:
    inputs = layer_cases.first_tokens(settings, drawn, tokens)
    tick(f"{tokens} tokens: float32")
    truth = _truth(settings, cases, parameters, inputs)
    programs = _programs(settings, cases, parameters, inputs)
    tick(f"{tokens} tokens: compiling")
    compiled = _compiled(programs)
    row = functools.partial(_row, settings, tokens)
    yield from _ours(settings, programs, compiled, truth, tick, row)
    yield from _rivals(settings, block, inputs, truth, tick, row)


def units(settings: Any, cases: Sequence[Case]) -> int:
  """How often `layer_part` ticks."""
  programs = sum(2 + (not case.fused) for case in cases)
  return 1 + len(settings.tokens) * (2 + programs + 3)


def error_of(found: jax.Array, truth: jax.Array) -> float:
  """RMS of the difference over the RMS of the truth; inf if not finite."""

  @jax.jit
  def ratio(found: jax.Array, truth: jax.Array) -> jax.Array:
    wide = found.astype(jnp.float32)
    off = jnp.sqrt(jnp.mean((wide - truth) ** 2) / jnp.mean(truth**2))
    return jnp.where(jnp.isfinite(wide).all(), off, jnp.inf)

  return float(ratio(found, truth))


def _truth(
  settings: Any, cases: Sequence[Case], parameters: Any, inputs: Inputs
) -> Truth:
  """The exact solve, all in XLA and in float32, of the first input set."""
  exact = Case("truth", layer_cases.EXACT, fused=False, implementation="xla")
  block = layer_cases.run_block(settings, exact, jnp.float32)
  rule = layer_cases.run_rule(settings, exact, jnp.float32)
  y = block(parameters, inputs.hidden[0])[0]
  out = rule(*inputs.operands[0])[0]
  return jax.block_until_ready(Truth(y, out))


def _programs(
  settings: Any, cases: Sequence[Case], parameters: Any, inputs: Inputs
) -> list[Program]:
  """Everything of ours, the whole layer before its parts."""
  hidden = [(parameters, x) for x in inputs.hidden]
  matrices = [(a,) for a in inputs.matrices]
  found = []
  for case in cases:
    block = layer_cases.run_block(settings, case)
    rule = layer_cases.run_rule(settings, case)
    found.append(Program(BLOCK, case, block, hidden))
    found.append(Program(RULE, case, rule, inputs.operands))
    if not case.fused:
      inverse = layer_cases.run_inverse(case)
      found.append(Program(INVERSE, case, inverse, matrices))
  return found


def _compiled(programs: Sequence[Program]) -> list[float | None]:
  """Compiles all; megabytes of intermediate results, None where unknown.

  The first alone: what it finds out about products serves the others.
  """

  def megabytes(program: Program) -> float | None:
    compiled = program.run.lower(*program.sets[0]).compile()
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 1e6

  def attempt(program: Program) -> float | None:
    # A failure is met again, and reported, where the program is timed.
    return gpu_timing.attempt(lambda: megabytes(program))[0]

  first = attempt(programs[0])
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return [first, *pool.map(attempt, programs[1:])]


def _ours(
  settings: Any,
  programs: Sequence[Program],
  memory: Sequence[float | None],
  truth: Truth,
  tick: Tick,
  row: Callable[..., LayerRow],
) -> Iterator[LayerRow]:
  blocks: dict[str, Timing | None] = {}
  for program, megabytes in zip(programs, memory, strict=True):
    case, part = program.case, program.part
    tick(f"{part}: {case.name}")
    timing, judged, note = gpu_timing.run(
      gpu_timing.Job(
        case.name,
        case.implementation,
        functools.partial(_timed, settings, program, truth),
      )
    )
    if part == BLOCK:
      blocks[case.name] = timing
    share = None
    if part == INVERSE:
      share = gpu_timing.ratio(timing, blocks[case.name])
    yield row(
      part,
      case.name,
      case.implementation,
      timing,
      share=share,
      memory_mb=megabytes,
      note=note,
      **judged,
    )


def _timed(
  settings: Any, program: Program, truth: Truth
) -> tuple[Timing, dict[str, Any]]:
  timing = _measure(settings, program.run, program.sets)
  if program.part == INVERSE:
    return timing, {}
  found = program.run(*program.sets[0])[0]
  return timing, {"error": error_of(found, getattr(truth, program.part))}


def _measure(settings: Any, run: Callable[..., Any], sets, **options) -> Timing:
  return gpu_timing.measure(
    run, sets, repeats=settings.repeats, inner=settings.inner, **options
  )


def _rivals(
  settings: Any,
  block: Any,
  inputs: Inputs,
  truth: Truth,
  tick: Tick,
  row: Callable[..., LayerRow],
) -> Iterator[LayerRow]:
  """fla's rule, then the layer of transformers with fla and without."""
  no_fla = gpu.missing_fla(settings.chunk_size)
  jobs = [
    (RULE, FLA, FLA, functools.partial(_fla, settings, inputs, truth), no_fla),
  ]
  for name, fla in ((TRANSFORMERS_FLA, True), (TRANSFORMERS, False)):
    run = functools.partial(_layer, settings, block, inputs, truth, fla=fla)
    reason = transformers_block.missing(*(("fla",) if fla else ()))
    jobs.append((BLOCK, name, FLA if fla else "torch", run, reason))
  for part, name, implementation, run, reason in jobs:
    tick(f"{part}: {name}")
    timing, judged, note = gpu_timing.run(
      gpu_timing.Job(name, implementation, run, reason)
    )
    yield row(part, name, implementation, timing, note=note, **judged)


def _fla(
  settings: Any, inputs: Inputs, truth: Truth
) -> tuple[Timing, dict[str, Any]]:
  sets = [tuple(map(gpu.shared, x)) for x in inputs.operands]
  run = gpu.delta_rule()
  timing = _measure(settings, run, sets, wait=gpu.wait)
  out = gpu.returned(run(*sets[0])[0])
  return timing, {"error": error_of(out, truth.rule)}


def _layer(
  settings: Any, block: Any, inputs: Inputs, truth: Truth, *, fla: bool
) -> tuple[Timing, dict[str, Any]]:
  theirs = transformers_block.layer(block)
  run = transformers_block.forward(theirs, fla=fla)
  sets = [(gpu.shared(x),) for x in inputs.hidden]
  timing = _measure(settings, run, sets, wait=gpu.wait)
  y = gpu.returned(run(*sets[0]))
  judged = {
    "error": error_of(y, truth.block),
    "memory_mb": transformers_block.peak_bytes(run, *sets[0]) / 1e6,
  }
  transformers_block.free_memory()
  return timing, judged


def _row(
  settings: Any,
  tokens: int,
  part: str,
  name: str,
  implementation: str,
  timing: Timing | None,
  **columns: Any,
) -> LayerRow:
  """A row with None in every column that is not given."""
  known: dict[str, Any] = dict.fromkeys(LayerRow._fields)
  known |= gpu_timing.columns(timing) | columns
  known |= {
    "part": part,
    "name": name,
    "implementation": implementation,
    "tokens": tokens,
    "chunk_size": settings.chunk_size,
    "device": device_name(),
  }
  del known["first_s"]  # compiled before
  return LayerRow(**known)
