"""How the processes of a run find each other."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

AUTO = "auto"  # as a Cloud TPU, SLURM, Open MPI or Kubernetes says
# Seconds after which a process that says nothing counts as dead. Not fewer: one
# that compiles on a busy host may be silent for long.
SILENT_S = 40
# Seconds until a process says that it waits for others, and until it gives up.
SAYS_S, WAITS_S = 15, 300
USAGE = 2  # exit code


class Hosts(NamedTuple):
  """How a process finds the others of its run."""

  address: str = ""  # "HOST:PORT" of process 0; AUTO; "" for a process alone
  processes: int = 1  # how many, where an address is given
  process: int = 0  # which of them this is


def check(hosts: Hosts) -> None:
  """Raises ValueError for what names no processes; one sentence."""
  if hosts.address in ("", AUTO):
    if hosts[1:] != (1, 0):
      raise ValueError(
        "processes and process must come with --hosts=HOST:PORT, the address "
        "of process 0"
      )
    return
  host, port = _parts(hosts.address)
  if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
    raise ValueError(
      f"hosts must be {AUTO} or HOST:PORT of process 0, with a port in "
      f"[1, 65535], got {hosts.address!r}"
    )
  if hosts.processes < 1:
    raise ValueError(f"processes must be at least 1, got {hosts.processes}")
  if not 0 <= hosts.process < hosts.processes:
    raise ValueError(
      f"process must lie in [0, {hosts.processes}), got {hosts.process}"
    )


def connect(hosts: Hosts, name: str) -> None:
  """Joins the others, before anything is computed.

  Where they do not come within WAITS_S the process ends with one sentence and
  exit code USAGE.

  Args:
    hosts: who they are.
    name: of the experiment, for that sentence.

  Raises:
    ValueError: the address is none, its port is taken, or nobody says who they
      are; one sentence.
  """
  check(hosts)
  if not hosts.address:
    return
  given: dict[str, Any] = {}
  where = "that this machine names"
  if hosts.address != AUTO:
    _check_address(hosts)
    where = f"of --hosts={hosts.address}"
    given = {
      "coordinator_address": hosts.address,
      "num_processes": hosts.processes,
      "process_id": hosts.process,
      "cluster_detection_method": "deactivate",
    }
  try:
    with _patience(name, where):
      jax.distributed.initialize(
        # XLA aborts at its own limit, in words of its own.
        initialization_timeout=WAITS_S + 60,
        heartbeat_timeout_seconds=SILENT_S,
        **given,
      )
  except (RuntimeError, ValueError) as error:
    reason = str(error).strip().splitlines()[0].rstrip(".")
    raise ValueError(f"the other processes were not found: {reason}") from error


def _parts(address: str) -> tuple[str, str]:
  host, _, port = address.rpartition(":")
  return host.removeprefix("[").removesuffix("]"), port


def _check_address(hosts: Hosts) -> None:
  """Finds what JAX would wait for in vain, or crash on."""
  host, port = _parts(hosts.address)
  try:
    socket.getaddrinfo(host, int(port))
  except OSError as error:
    raise ValueError(
      f"hosts must name a host that is known here, got {host!r}: "
      f"{error.strerror}"
    ) from error
  if hosts.process:
    return
  try:
    # JAX would share a port that another run listens at, and end that run.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    socket.create_server(
      ("", int(port)), family=family, dualstack_ipv6=both
    ).close()
  except OSError as error:
    raise ValueError(
      f"port {port} of --hosts cannot be opened by process 0: "
      f"{os.strerror(error.errno or 0)}; each run needs one of its own"
    ) from error


@contextlib.contextmanager
def _patience(name: str, where: str) -> Iterator[None]:
  """Says that others are waited for, and ends the process if none comes.

  In threads, because `initialize` returns to Python when all are there.
  """

  def say() -> None:
    print(f"{name}: waiting for the other processes {where}", file=sys.stderr)

  def end() -> None:
    print(
      f"{name}: the other processes {where} were not found within {WAITS_S} s: "
      "all must be started, each with a number of its own; nothing was written",
      file=sys.stderr,
      flush=True,
    )
    os._exit(USAGE)

  timers = [threading.Timer(SAYS_S, say), threading.Timer(WAITS_S, end)]
  for timer in timers:
    timer.daemon = True
    timer.start()
  try:
    yield
  finally:
    for timer in timers:
      timer.cancel()
