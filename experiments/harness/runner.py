"""The one entry of every experiment: `main`.

Whatever ends a run ends in one sentence on stderr: exit code 2 where the
command cannot be run as given (`command_line`), 1 where a file cannot be
written, 130 after Ctrl-C.
"""

import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from experiments.harness import command_line, record, writing
from experiments.harness.command_line import Command, UsageError
from experiments.harness.processes import console, hosts, interrupts, meeting

S = TypeVar("S")

# Exit codes: a file could not be written, the command cannot be run, Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, meeting.USAGE, 130


def main(
  name: str,
  settings_type: type[S],
  experiment: Callable[[Any, record.Run], None],
  argv: Sequence[str] | None = None,
  *,
  prepare: Callable[[S], Any] | None = None,
  inputs: Callable[[Any], Mapping[str, str]] | None = None,
  resumable: bool = False,
  many_hosts: bool = False,
) -> None:
  """Parses the command line and runs the experiment in a recorded folder.

  Args:
    name: the experiment's module name; its default config is
      `configs/<name>.py`.
    settings_type: frozen dataclass the config becomes.
    experiment: called with the settings, or with what `prepare` made of them,
      and the open run.
    argv: the command line with the program's name first; None: the process's.
    prepare: reads the files that the settings name, before the run's folder is
      made; what it refuses is a usage error.
    inputs: SHA-256 by name of the files that go in, of what the experiment is
      called with; a run is gone on with only where they are the same.
    resumable: whether the experiment leaves out the rows that its tables have.
    many_hosts: whether several processes can make one run of it.
  """
  argv = list(sys.argv if argv is None else argv)
  run: record.Run | None = None
  command: Command | None = None
  with console.steady(name), interrupts.heard():
    if any(arg in ("-h", "--help", "-help") for arg in argv[1:]):
      print(command_line.usage(name))
      return
    try:
      command = command_line.parse(argv, name)
      if command.resume and not resumable:
        raise UsageError(f"{name} has no --resume: it is run as a whole")
      if command.hosts.address and not many_hosts:
        raise UsageError(f"{name} has no --hosts: it is run by one process")
      _prepared(functools.partial(meeting.connect, name=name), command.hosts)
      if hosts.are_many():
        lost = "another process of this run has died"
        hosts.on_lost(
          lambda: f"{name}: {lost}; {_left(run, command, resumable)}", FAILED
        )
        if not hosts.is_first():
          sys.stdout = open(os.devnull, "w")  # process 0 says it
      _prepared(hosts.agree, command_line.told(command, name))
      given, files = hosts.together(
        functools.partial(_ready, command, settings_type, prepare, inputs)
      )
      hashes = {f"SHA-256 of {name}": x for name, x in files.items()}
      _prepared(hosts.agree, hashes)
      run = _opened(command, files)
      with run:
        experiment(given, run)
    except (UsageError, writing.Refused, hosts.OtherFailed) as error:
      _leave(f"{name}: {error}", USAGE)
    except KeyboardInterrupt:
      interrupts.ignore()
      left = _left(run, command, resumable)
      _leave(f"{name}: interrupted; {left}", INTERRUPTED)
    except OSError as error:
      words = f"{error.filename}: {error.strerror}"
      words = words if error.filename else str(error)
      _leave(f"{name}: {words}; {_left(run, command, resumable)}", FAILED)
    except Exception as error:
      if not hosts.are_many():
        raise
      if hosts.may_have_lost(error):
        # Another process, which `on_lost` will then say.
        time.sleep(meeting.SILENT_S + 10)
      traceback.print_exc()
      _leave(f"{name}: {_left(run, command, resumable)}", FAILED)


def _ready(
  command: Command,
  settings_type: type[S],
  prepare: Callable[[S], Any] | None,
  inputs: Callable[[Any], Mapping[str, str]] | None,
) -> tuple[Any, Mapping[str, str]]:
  """What the experiment is called with, and the hashes of its files."""
  given: Any = command_line.to_settings(settings_type, command.config)
  if prepare is not None:
    given = _prepared(prepare, given)
  return given, {} if inputs is None else _prepared(inputs, given)


def _opened(command: Command, inputs: Mapping[str, str]) -> record.Run:
  run = record.Run(
    command.workdir,
    command=record.command_line(),
    config=command.config.to_dict(),
    inputs=inputs,
    resume=command.resume,
  )
  if run.folder != command.workdir:
    print(f"{command.workdir} is in use; this run goes to {run.folder}")
  return run


def _leave(words: str, code: int) -> NoReturn:
  print(words, file=sys.stderr)
  if hosts.are_many():
    hosts.leave(code)
  sys.exit(code)


def _left(
  run: record.Run | None, command: Command | None, resumable: bool
) -> str:
  """What there is of a run that was stopped."""
  if run is None and command is not None and command.resume:
    return "the same command goes on with the run"
  if run is None:
    return "nothing was written"
  if resumable:
    return run.how_to_go_on()
  return f"what was written is in {run.folder}"


def _prepared(prepare: Callable[[Any], Any], given: Any) -> Any:
  try:
    return prepare(given)
  except (ImportError, OSError, ValueError) as error:
    raise UsageError(str(error)) from error
