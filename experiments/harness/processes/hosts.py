"""Several processes that make one run: what they agree on and exchange.

Every process computes; process 0 decides what depends on files or on the clock,
tells the others, and writes. A process alone is process 0 of one.
"""

import ctypes
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

T = TypeVar("T")

# Seconds by which process 0 leaves after the others.
LAST_S = 3
# Messages are padded to powers of two: each length is a program of its own.
_LEAST_BYTES = 1 << 10
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Any] = []  # handlers that C may call


class OtherFailed(RuntimeError):
  """Another process could not go on, and says why itself."""


def are_many() -> bool:
  """Whether there are other processes; asks no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is process 0, which writes."""
  return not are_many() or jax.process_index() == 0


def on_lost(words: Callable[[], str], code: int) -> None:
  """What is said, and the exit code, when another process has died.

  JAX then aborts in a thread of its own, where no exception of Python's can be
  raised: C calls this instead.

  Args:
    words: gives one sentence.
    code: of the exit.
  """

  def handler(number: int) -> None:
    del number
    os.write(2, f"{words()}\n".encode())
    os._exit(code)

  _kept[:] = [_HANDLER(handler)]
  ctypes.CDLL(None).signal(signal.SIGABRT, _kept[0])


def may_have_lost(error: Exception) -> bool:
  """Whether an error may come of another process that has died.

  JAX raises what XLA says as errors of its own or, where a program is called
  through its fast path (jax 0.10 to 0.12), as a ValueError.
  """
  if isinstance(error, jax.errors.JaxRuntimeError):
    return True
  return re.match(r"[A-Z_]+: (Gloo|NCCL)", str(error)) is not None


def end_on_sigterm() -> None:
  """SIGTERM ends this process at once, as one that is alone.

  JAX takes the signal where there are others, for `checkpoints.Interrupt`; in
  an experiment that counts no steps it would be lost.
  """
  if are_many():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(code: int) -> None:
  """Ends this process at once, so that the others hear of it.

  An orderly end waits for all of them, who wait for this one.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if is_first():
    # JAX ends the others when this one is gone: who is about to say why it
    # cannot go on has time to.
    time.sleep(LAST_S)
  os._exit(code)


def from_first(make: Callable[[], T]) -> T:
  """What process 0 makes, in every process.

  Args:
    make: called in process 0 alone; gives what JSON holds.

  Raises:
    OtherFailed: it failed there; process 0 raises what `make` does.
  """
  if not are_many():
    return make()
  if not is_first():
    found = json.loads(_told(b""))
    if "failed" in found:
      raise OtherFailed(f"process 0 could not go on: {found['failed']}")
    return found["made"]
  try:
    made = make()
  except Exception as error:
    _told(json.dumps({"failed": str(error)}).encode())
    raise
  _told(json.dumps({"made": made}).encode())
  return made


def from_all(value: T) -> list[T]:
  """What every process has, in their order: anything that JSON holds."""
  if not are_many():
    return [value]
  return [
    json.loads(_told(json.dumps(value).encode(), source=i))
    for i in range(jax.process_count())
  ]


def together(call: Callable[[], T]) -> T:
  """What a call gives in this process, once it has succeeded in all.

  Args:
    call: waits for no other process.

  Raises:
    OtherFailed: it failed elsewhere; a process where it failed raises that.
  """
  if not are_many():
    return call()
  error: BaseException | None = None
  try:
    made = call()
  except (Exception, SystemExit) as own:
    error = own
  failed = multihost_utils.process_allgather(np.int32(error is not None))
  if error is not None:
    raise error
  if np.any(failed):
    raise OtherFailed(
      f"process {np.argmax(failed)} could not go on, and says why itself"
    )
  return made


def agree(given: Mapping[str, Any]) -> None:
  """Checks that all processes were given the same.

  Args:
    given: values by name.

  Raises:
    ValueError: this process has other values than process 0; one sentence.
    OtherFailed: another process has.
  """
  if not are_many():
    return
  # As text, in which NaN is NaN and everything has a form.
  mine = {
    name: json.dumps(value, sort_keys=True, default=str)
    for name, value in given.items()
  }
  first = from_first(lambda: mine)

  def compare() -> None:
    for name in first | mine:
      if mine.get(name) != first.get(name):
        raise ValueError(
          f"process {jax.process_index()} has {name}={mine.get(name)} where "
          f"process 0 has {first.get(name)}: all take the same command and "
          "files, --process apart"
        )

  together(compare)


def place(tree: Any, sharding: Any) -> Any:
  """Arrays that all processes have alike, on the devices of all.

  Args:
    tree: of arrays, whole in every process or placed already.
    sharding: of all, or a tree of one for each.
  """
  if not are_many():
    return jax.device_put(tree, sharding)
  if isinstance(sharding, Sharding):
    everywhere = sharding
    sharding = jax.tree.map(lambda _: everywhere, tree)
  return jax.tree.map(_placed, tree, sharding)


def whole(tree: Any) -> Any:
  """Arrays on the devices of all, whole in every process."""
  if not are_many():
    return tree
  return jax.tree.map(
    lambda x: jnp.asarray(multihost_utils.process_allgather(x, tiled=True)),
    tree,
  )


def _placed(x: Any, sharding: Sharding) -> jax.Array:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)
  data = np.asarray(x)
  return jax.make_array_from_callback(
    data.shape, sharding, lambda index: data[index]
  )


def _told(data: bytes, source: int = 0) -> bytes:
  """The bytes of one process, in all."""
  here = jax.process_index() == source
  tell = multihost_utils.broadcast_one_to_all
  size = int(tell(np.int32(len(data)), is_source=here))
  buffer = np.zeros(max(_LEAST_BYTES, 1 << (size - 1).bit_length()), np.uint8)
  if here:
    buffer[:size] = np.frombuffer(data, np.uint8)
  told = np.asarray(tell(buffer, is_source=here))
  return told[:size].astype(np.uint8).tobytes()
