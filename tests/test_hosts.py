"""What several processes agree on, where one is process 0 of one."""

import json
import signal
import socket
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.evaluate_lm import sweep
from experiments.harness import record, runner
from experiments.harness.processes import hosts, meeting
from experiments.harness.processes.meeting import Hosts
from experiments.harness.training import checkpoints
from experiments.harness.training.checkpoints import Checkpoints, Saved
from neumann_jax import sharding
from tests import oracles, test_training


def test_alone_all_are_agreed():
  assert not hosts.are_many() and hosts.is_first()
  assert hosts.from_first(lambda: {"a": float("inf")}) == {"a": float("inf")}
  assert hosts.from_all("x") == ["x"]
  x = np.arange(3.0)
  assert hosts.whole(x) is x
  with pytest.raises(KeyError):
    hosts.from_first(lambda: {}["a"])


class Together:
  """`hosts` as it is in one of two processes; what is told is kept."""

  def __init__(self, monkeypatch, process, told=()):
    self.told = list(told)
    monkeypatch.setattr(hosts, "are_many", lambda: True)
    monkeypatch.setattr(hosts.jax, "process_index", lambda: process)
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "_told", self._tell)

  def _tell(self, data, source=0):
    if hosts.jax.process_index() == source:
      self.told.append(data)
    return self.told.pop(0) if self.told else data


def test_what_the_first_makes_and_why_it_could_not(monkeypatch):
  first = Together(monkeypatch, 0)
  assert hosts.from_first(lambda: [1, "a"]) == [1, "a"]

  def fail():
    raise OSError("the disk is full")

  with pytest.raises(OSError, match="the disk is full"):
    hosts.from_first(fail)
  second = Together(monkeypatch, 1, [b'{"made": [1, "a"]}'])
  assert hosts.from_first(fail) == [1, "a"]
  second.told = [b'{"failed": "the disk is full"}']
  with oracles.refused(
    hosts.OtherFailed, "process 0 could not go on: the disk is full"
  ):
    hosts.from_first(fail)
  del first


def test_all_were_given_the_same_or_none_goes_on(monkeypatch):
  first = {"config.rate": 0.1, "config.least": float("nan")}
  made = {name: json.dumps(value) for name, value in first.items()}
  told = json.dumps({"made": made}).encode()
  Together(monkeypatch, 1, [told] * 3)
  failed = np.int32([0, 0])
  monkeypatch.setattr(
    hosts.multihost_utils, "process_allgather", lambda own: failed + own
  )
  hosts.agree(first)
  with oracles.refused(
    ValueError, "process 1 has config.rate=0.2 where process 0 has 0.1: all "
  ):
    hosts.agree(first | {"config.rate": 0.2})
  with oracles.refused(
    ValueError, "process 1 has size=1 where process 0 has N"
  ):
    hosts.agree(first | {"size": 1})
  failed = np.int32([0, 1])
  with oracles.refused(
    hosts.OtherFailed, "process 1 could not go on, and says"
  ):
    hosts.together(lambda: 3)


def test_only_the_first_writes(monkeypatch, tmp_path):
  with record.Run(tmp_path / "run") as run:
    run.write("table", {"a": 1})
  folder = json.dumps({"made": str(tmp_path / "run")}).encode()
  rows = json.dumps({"made": [{"a": 1}]}).encode()
  before = {x.name: x.read_bytes() for x in (tmp_path / "run").iterdir()}
  begun = json.dumps({"made": None}).encode()
  Together(monkeypatch, 1, [folder, begun, rows])
  with record.Run(tmp_path / "other") as run:
    run.write("table", {"a": 2})
    assert run.rows("table") == [{"a": 1}]
  assert run.folder == tmp_path / "run"
  after = {x.name: x.read_bytes() for x in (tmp_path / "run").iterdir()}
  assert after == before and not (tmp_path / "other").exists()


def _stop_at(monkeypatch, number):
  """One of many processes, told so by JAX's answer to its call of a number."""
  monkeypatch.setattr(hosts, "are_many", lambda: True)
  monkeypatch.setattr(
    checkpoints.multihost_utils,
    "reached_preemption_sync_point",
    lambda call: call == number,
  )


def test_all_stop_when_jax_says_so(monkeypatch, tmp_path):
  """With a checkpoint; one process goes on to the same bits."""
  whole = test_training._train(tmp_path / "whole")
  before = signal.getsignal(signal.SIGTERM)
  _stop_at(monkeypatch, 5)
  with checkpoints.Interrupt() as interrupt:
    # JAX has the signal.
    assert signal.getsignal(signal.SIGTERM) is before
    found = [interrupt.reached() for _ in range(7)]
    assert found == [False] * 5 + [True] * 2
  part = tmp_path / "part"
  words = "the same command goes on with --resume --workdir="
  with oracles.refused(SystemExit, f"^stopped at step 5; {words}{part}$"):
    test_training._train(part)
  assert (part / "checkpoints/00000005.orbax").is_dir()
  # A signal that came before the first call: JAX stops at 1 and at no other.
  _stop_at(monkeypatch, 1)
  with oracles.refused(SystemExit, f"^stopped at step 6; {words}{part}$"):
    test_training._train(part, resume=True)
  monkeypatch.undo()
  rest = test_training._train(part, resume=True)
  for a, b in zip(*map(jax.tree.leaves, (whole, rest)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_where_no_steps_are_counted_sigterm_ends_a_process(monkeypatch):
  def jax_has_it(*_):
    pass

  before = signal.signal(signal.SIGTERM, jax_has_it)
  try:
    hosts.end_on_sigterm()
    assert signal.getsignal(signal.SIGTERM) is jax_has_it
    monkeypatch.setattr(hosts, "are_many", lambda: True)
    hosts.end_on_sigterm()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_closed_connection_may_be_another_process_that_has_died():
  closed = "UNKNOWN: Gloo all-reduce failed: Connection closed by peer"
  assert hosts.may_have_lost(jax.errors.JaxRuntimeError("INTERNAL: gone"))
  assert hosts.may_have_lost(ValueError(closed))
  assert not hosts.may_have_lost(ValueError("rows must be 1, got Gloo"))


class State(NamedTuple):
  w: jax.Array
  step: jax.Array


def _state(mesh, spec, fill=None):
  w = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  w = w if fill is None else np.full_like(w, fill)
  place = NamedSharding(mesh, spec)
  return State(
    jax.device_put(w, place),
    jax.device_put(jnp.int32(3), NamedSharding(mesh, P())),
  )


def test_what_many_wrote_is_read_on_any_mesh(monkeypatch, tmp_path):
  """Parts of eight devices, by half of them split another way; then alone."""
  written = _state(sharding.make_mesh(data=4, fsdp=2), P("fsdp", None))
  monkeypatch.setattr(hosts, "are_many", lambda: True)
  Checkpoints(tmp_path).save(Saved(written, 12.0))
  monkeypatch.undo()
  like = _state(sharding.make_mesh(fsdp=4), P(None, "fsdp"), fill=0)
  found, total = Checkpoints(tmp_path).restore(like)
  assert total == 12 and int(found.step) == 3
  assert found.w.sharding == like.w.sharding
  np.testing.assert_array_equal(found.w, written.w)
  # The newest two remain, whoever wrote them.
  for step in (4, 5):
    now = found._replace(step=jnp.int32(step))
    Checkpoints(tmp_path).save(Saved(now, 12.0))
  left = sorted(x.suffix for x in (tmp_path / "checkpoints").iterdir())
  assert left == [".safetensors"] * 2


def test_batches_are_shared_out_whole():
  todo = [(batch, case) for case in "ab" for batch in (0, 2, 3)]
  shares = sweep._shares(todo, 2)
  assert shares == [
    [(0, "a"), (3, "a"), (0, "b"), (3, "b")],
    [(2, "a"), (2, "b")],
  ]
  assert sweep._shares(todo, 1) == [todo]


@pytest.mark.parametrize(
  "given, words",
  [
    (Hosts(processes=2), "processes and process must come with --hosts=HOST"),
    (Hosts("auto", process=1), "processes and process must come with"),
    (Hosts("somewhere"), "hosts must be auto or HOST:PORT of process 0, with"),
    (Hosts(":80"), "hosts must be auto or HOST:PORT of process 0"),
    (Hosts("a:65536", 2), r"with a port in \[1, 65535\], got 'a:65536'"),
    (Hosts("a:80", 0), "processes must be at least 1, got 0"),
    (Hosts("a:80", 2, 2), r"process must lie in \[0, 2\), got 2"),
  ],
)
def test_refused_hosts(given, words):
  with oracles.refused(ValueError, words):
    meeting.check(given)


def test_addresses_that_jax_would_crash_on_or_wait_for():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    with oracles.refused(ValueError, "of --hosts cannot be opened by process"):
      meeting.connect(Hosts(address, 2), "x")
  with oracles.refused(ValueError, "hosts must name a host that is known here"):
    meeting.connect(Hosts("no.such.host.invalid:80", 2, 1), "x")


def test_who_waits_says_so_and_gives_up(monkeypatch, capsys):
  ended = threading.Event()
  monkeypatch.setattr(meeting, "SAYS_S", 0.01)
  monkeypatch.setattr(meeting, "WAITS_S", 0.1)
  monkeypatch.setattr(meeting.os, "_exit", lambda code: ended.set())
  with meeting._patience("x", "of --hosts=a:1"):
    assert ended.wait(20)
  said = capsys.readouterr().err
  assert said.startswith("x: waiting for the other processes of --hosts=a:1\n")
  assert (
    "x: the other processes of --hosts=a:1 were not found within 0.1 s: "
    in said
  )


def test_who_has_met_the_others_does_not_give_up(monkeypatch, capsys):
  monkeypatch.setattr(meeting, "SAYS_S", 0.05)
  monkeypatch.setattr(meeting, "WAITS_S", 0.05)
  with meeting._patience("x", "at a:1"):
    pass
  time.sleep(0.2)
  assert not capsys.readouterr().err


def test_other_experiments_have_no_hosts(capsys):
  with pytest.raises(SystemExit) as left:
    runner.main(
      "generate", object, print, ["x", "--hosts=a:1", "--processes=2"]
    )
  assert left.value.code == runner.USAGE
  assert "has no --hosts: it is run by one process" in capsys.readouterr().err
