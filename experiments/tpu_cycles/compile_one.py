"""Compiles one kernel for a TPU that is not there and reads its schedule."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.tpu_cycles import kernels, schedule


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


def first_sentence(error: Exception) -> str:
  """What an error says first, at most 200 characters of it."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


def _clear(folder: pathlib.Path) -> None:
  for path in folder.iterdir():
    path.unlink()
