"""Times the layer, its rule and its inverse at one length, row by row.

A part returns rows, never prints, and goes on where a case fails: the row then
says why. Programs of one length are compiled together, in threads, before any
of them is timed.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.harness.processes import threads
from experiments.harness.progress import Tick
from experiments.harness.speed import timing
from experiments.harness.speed.timing import Job, Timing
from experiments.layer_speed import cases as layer_cases
from experiments.layer_speed.cases import Inputs, LayerCase
from experiments.peers import gpu, transformers_block

BLOCK, RULE, INVERSE = PARTS = ("block", "rule", "inverse")
FLA = "fla"
TRANSFORMERS_FLA = "transformers with fla"
TRANSFORMERS = "transformers in torch"


class Program(NamedTuple):
  """Something of ours to time."""

  part: str  # one of PARTS
  case: LayerCase  # which inverse
  run: jax.stages.Wrapped  # jitted
  sets: Sequence[tuple]  # input sets


class Truth(NamedTuple):
  """Outputs in float32 at highest precision, by part."""

  block: jax.Array  # [1, T, hidden]
  rule: jax.Array  # [1, T, Hv, Dv]


def layer_part(
  settings: Any, cases: Sequence[LayerCase], tick: Tick
) -> Iterator[dict[str, Any]]:
  """Times every part of every case, then the peers, length by length.

  Beside its times a row has `share`, of an inverse its time over that of the
  block around it; `error`, the RMS error of the output over the output's RMS,
  against the same computation in float32 at highest precision; and
  `memory_mb`, of intermediate results in 10^6 bytes.
  """
  tick("drawing")
  drawn = layer_cases.draw(settings)
  block = layer_cases.block(settings, cases[0])
  parameters = nnx.split(block)[1]
  for tokens in settings.tokens:
    inputs = layer_cases.first_tokens(settings, drawn, tokens)
    tick(f"{tokens} tokens: float32")
    truth = _truth(settings, parameters, inputs)
    programs = _programs(settings, cases, parameters, inputs)
    tick(f"{tokens} tokens: compiling")
    memory = _compiled(programs)
    blocks: dict[str, dict] = {}
    for program, megabytes in zip(programs, memory, strict=True):
      name = program.case.name
      tick(f"{program.part}: {name}")
      row = _row(
        settings, tokens, program.part, _ours(settings, program, truth)
      )
      row["memory_mb"] = megabytes
      if program.part == BLOCK:
        blocks[name] = row
      if program.part == INVERSE:
        row["share"] = timing.ratio(row, blocks[name])
      yield row
    for part, job in _peers(settings, block, inputs, truth):
      tick(f"{part}: {job.name}")
      yield _row(settings, tokens, part, job)


def units(settings: Any, cases: Sequence[LayerCase]) -> int:
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


def _truth(settings: Any, parameters: Any, inputs: Inputs) -> Truth:
  """The exact solve, all in XLA and in float32, of the first input set."""
  exact = LayerCase(
    "truth", layer_cases.EXACT, fused=False, implementation="xla"
  )
  block = layer_cases.run_block(settings, exact, jnp.float32)
  rule = layer_cases.run_rule(settings, exact, jnp.float32)
  y = block(parameters, inputs.hidden[0])[0]
  out = rule(*inputs.operands[0])[0]
  return jax.block_until_ready(Truth(y, out))


def _programs(
  settings: Any, cases: Sequence[LayerCase], parameters: Any, inputs: Inputs
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

  def attempt(i: int) -> float | None:
    # A failure is met again, and reported, where the program is timed.
    return timing.attempt(lambda: megabytes(programs[i]))[0]

  found = {0: attempt(0)}
  rest = range(1, len(programs))
  workers = os.cpu_count() or 1
  found |= threads.in_threads(lambda i: (i, attempt(i)), rest, workers)
  return [found[i] for i in range(len(programs))]


def _ours(settings: Any, program: Program, truth: Truth) -> Job:
  def run() -> tuple[Timing, dict[str, Any]]:
    taken = settings.measure(program.run, program.sets)
    if program.part == INVERSE:
      return taken, {}
    found = program.run(*program.sets[0])[0]
    return taken, {"error": error_of(found, getattr(truth, program.part))}

  return Job(program.case.name, program.case.implementation, run)


def _peers(
  settings: Any, block: Any, inputs: Inputs, truth: Truth
) -> Iterator[tuple[str, Job]]:
  """fla's rule, then the layer of transformers with fla and without."""

  def rule() -> tuple[Timing, dict[str, Any]]:
    run = gpu.delta_rule()
    taken, out = gpu.measured(settings.measure, run, inputs.operands)
    return taken, {"error": error_of(gpu.returned(out[0]), truth.rule)}

  def layer(fla: bool) -> tuple[Timing, dict[str, Any]]:
    theirs = transformers_block.layer(block)
    run = transformers_block.forward(theirs, fla=fla)
    taken, y = gpu.measured(settings.measure, run, list(zip(inputs.hidden)))
    peak = gpu.peak_bytes(run, gpu.shared(inputs.hidden[0]))
    error = error_of(gpu.returned(y), truth.block)
    evaluated = {"error": error, "memory_mb": peak / 1e6}
    gpu.free_memory()
    return taken, evaluated

  yield RULE, Job(FLA, FLA, rule, gpu.missing_fla(settings.chunk_size))
  missing = transformers_block.missing
  with_fla, without = (functools.partial(layer, x) for x in (True, False))
  yield BLOCK, Job(TRANSFORMERS_FLA, FLA, with_fla, missing("fla"))
  yield BLOCK, Job(TRANSFORMERS, "torch", without, missing())


def _row(settings: Any, tokens: int, part: str, job: Job) -> dict[str, Any]:
  about = {"tokens": tokens, "chunk_size": settings.chunk_size}
  row = timing.row(job, about, ("share", "error", "memory_mb"))
  del row["first_s"]  # compiled before
  return {"part": part, **row}
