"""Compiles kernels for a TPU that is not there and reads their schedules.

    python -m experiments.tpu_cycles.compile_one KIND --dump DIR
        --kernels NAME ... --batches N ...

        --rules NAME ... --layers FORM ... --shape B T HK HV

compiles every kernel at every batch, and every rule and decoder layer at a
shape, for one kind of TPU and prints one JSON line before each compile and one
after.
`schedule.schedules` starts it with the environment that libtpu reads when jax
initialises it.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import kernels, layers, rules, schedule


def device(topology: str) -> Any:
  """A device of a kind by the name of its topology; libtpu describes it."""
  described = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  )
  return described.devices[0]


def measure(
  kernel: str,
  batch: int,
  where: Any,
  dump: pathlib.Path,
) -> dict[str, Any]:
  """Compiles a kernel and reads what libtpu dumped.

  Args:
    kernel: among `kernels.NAMES`.
    batch: matrices a grid step asked for.
    where: from `device`.
    dump: folder that libtpu dumps into, cleared before and after.

  Returns:
    The fields of `Schedule` and "seconds"; or "reason", a sentence.
  """
  start = time.monotonic()
  try:
    program = kernels.program(kernel, batch)
    _clear(dump)
    shape = (kernels.COUNT, kernels.CHUNK_SIZE, kernels.CHUNK_SIZE)
    a = jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=SingleDeviceSharding(where)
    )
    jax.jit(lambda a: program.call(a, None)).lower(a).compile()
    found = schedule.read(dump, program.label, program.trips)
  except (ImportError, ValueError, jax.errors.JaxRuntimeError) as error:
    return {"reason": first_sentence(error)}
  finally:
    _clear(dump)
  return {
    **dataclasses.asdict(found),
    "seconds": round(time.monotonic() - start, 1),
  }


def measure_rule(
  name: str, shape: Shape, where: Any, dump: pathlib.Path
) -> dict[str, Any]:
  """Compiles a rule and reads the schedules of its kernels.

  Args:
    name: among `rules.NAMES`.
    shape: of its operands.
    where: from `device`.
    dump: folder that libtpu dumps into, cleared before and after.

  Returns:
    "bundles" of all kernels and steps of their grids, by "kernel" that of each,
    "chunks" of value heads, "mib" of HBM that the program holds beside its
    arguments and results, and "seconds"; or "reason", a sentence.
  """
  start = time.monotonic()
  try:
    program = rules.program(name, shape)
    _clear(dump)
    sharding = SingleDeviceSharding(where)
    arguments = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
      for x in program.shapes
    ]
    with program.context(where):
      traced = jax.jit(program.call).trace(*arguments)
      lowered = traced.lower()
    compiled = lowered.compile()
    by_kernel = {
      kernel: _bundles(dump, kernel, steps, program.trips)
      for kernel, steps in rules.kernels(traced.jaxpr.jaxpr)
    }
    held = compiled.memory_analysis().temp_size_in_bytes
  except (ImportError, ValueError, jax.errors.JaxRuntimeError) as error:
    return {"reason": first_sentence(error)}
  finally:
    _clear(dump)
  return {
    "bundles": sum(by_kernel.values()),
    "by_kernel": by_kernel,
    "chunks": program.chunks,
    "mib": held / 2**20,
    "seconds": round(time.monotonic() - start, 1),
  }


def _bundles(
  dump: pathlib.Path, kernel: str, steps: int, trips: Mapping[str, int]
) -> int:
  """Of all steps of a kernel's grid, or of its own loop over tiles."""
  for name, count in trips.items():
    if kernel.startswith(name):
      return count * schedule.written(dump, kernel)
  return steps * schedule.read(dump, kernel, 1).bundles


def measure_layer(form: str, shape: Shape, where: Any) -> dict[str, Any]:
  """Compiles a decoder layer and reads what libtpu expects of XLA's part.

  Args:
    form: among `layers.FORMS`.
    shape: of the tokens and the heads.
    where: from `device`.

  Returns:
    "cycles" by part of the layer, "kernels" by name with their grid steps, and
    "seconds"; or "reason", a sentence.
  """
  start = time.monotonic()
  try:
    call, arguments = layers.program(form, shape, SingleDeviceSharding(where))
    traced = jax.jit(call).trace(*arguments)
    compiled = traced.lower().compile(compiler_options=layers.OPTIONS)
    text = compiled.as_text()
    cycles = layers.cycles(text, -(-shape.tokens // rules.CHUNK_SIZE))
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    return {"reason": first_sentence(error)}
  return {
    "cycles": cycles,
    "kernels": rules.kernels(traced.jaxpr.jaxpr),
    "seconds": round(time.monotonic() - start, 1),
  }


def first_sentence(error: Exception) -> str:
  """What an error says first, at most 200 characters of it."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


def _clear(folder: pathlib.Path) -> None:
  for path in folder.iterdir():
    path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
  """The compiling process."""
  parser = argparse.ArgumentParser(prog="experiments.tpu_cycles.compile_one")
  parser.add_argument("kind", choices=schedule.TOPOLOGIES)
  parser.add_argument("--dump", type=pathlib.Path)
  parser.add_argument("--kernels", nargs="*", default=[])
  parser.add_argument("--batches", nargs="*", type=int, default=[])
  parser.add_argument("--rules", nargs="*", default=[])
  parser.add_argument("--layers", nargs="*", default=[])
  parser.add_argument("--shape", nargs=4, type=int)
  options = parser.parse_args(argv)
  where = device(schedule.TOPOLOGIES[options.kind])
  for kernel in options.kernels:
    for batch in options.batches:
      _say({"begin": kernel, "batch": batch})
      row = measure(kernel, batch, where, options.dump)
      _say({"kernel": kernel, "batch": batch, **row})
  for rule in options.rules:
    _say({"begin": rule, "batch": None})
    row = measure_rule(rule, Shape(*options.shape), where, options.dump)
    _say({"rule": rule, **row})
  for form in options.layers:
    _say({"begin": form, "batch": None})
    row = measure_layer(form, Shape(*options.shape), where)
    _say({"layer": form, **row})


def _say(row: Mapping[str, Any]) -> None:
  print(json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
