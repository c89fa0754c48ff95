"""The command line of every experiment, and its config as settings.

    python -m experiments.NAME [--config=configs/NAME.py[:debug]]
        [--config.FIELD=VALUE ...] [--workdir=DIR] [--resume]
        [--hosts=auto | --hosts=HOST:PORT --processes=N --process=I]

Without `--config` the experiment's own `configs/NAME.py` is read. The config
is locked: a field it does not have is refused, and so is one that is given
twice; the values of a tuple go into one, as --config.FIELD="(20,50)". Without
`--workdir` results go to `runs/NAME`. A folder that holds anything is never
written over: the run then gets `DIR/2`, `DIR/3`, ... and says so. With
`--resume`, which only long experiments have, the run goes on in `DIR` with the
rows that are there, under the same config and of the same files; in an empty
folder, it starts. Others who would write into a run's folder meanwhile are told
which process holds it.

Experiments for many hosts are started once on each, in a folder that all see,
with --hosts=auto where a Cloud TPU, SLURM, Open MPI or Kubernetes says who they
are, else with the address of process 0, their number and the process's own.

Usage errors end in one sentence on stderr and exit code 2, a file that cannot
be written in one and exit code 1, Ctrl-C in one and exit code 130. ConfigDicts
stop here: experiments see frozen dataclasses.
"""

import ast
import collections
import dataclasses
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.harness.processes.meeting import Hosts
from experiments.harness.settings import check_elements

S = TypeVar("S")

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


class UsageError(ValueError):
  """The command cannot be run as given; the message is one sentence."""


class Command(NamedTuple):
  """A parsed command line."""

  # the locked config with the command line's overrides
  config: ml_collections.ConfigDict
  workdir: pathlib.Path  # where results go
  resume: bool  # whether to go on with the run that is there
  hosts: Hosts = Hosts()  # the processes of the run


def usage(name: str) -> str:
  """The text of `--help`: this module's, the config's and its fields."""
  config = parse([name], name).config
  lines = [_config_docstring(name), "", "Fields and their defaults:"]
  lines += [f"  --config.{path}={value}" for path, value in _leaves(config)]
  return "\n".join([(__doc__ or "").replace("NAME", name), *lines])


def told(command: Command, name: str) -> dict[str, Any]:
  """What all processes of a run of an experiment have alike, by name."""
  return {
    "experiment": name,
    "jax": jax.__version__,
    "processes": command.hosts.processes,
    "workdir": str(command.workdir),
    "resume": command.resume,
    **{f"config.{path}": value for path, value in _leaves(command.config)},
  }


def parse(argv: Sequence[str], name: str) -> Command:
  """Reads a command line.

  Args:
    argv: the program's name, then its arguments.
    name: the experiment.

  Returns:
    The config and the folder.

  Raises:
    UsageError: an unknown flag, config file, form or field, or a wrong value.
  """
  argv = _with_flagfiles(argv)
  _check_given_once(argv)
  base, _ = _parse_flags([name, *_config_argument(argv)], name)
  for arg in argv[1:]:
    if match := re.match(r"--?(?:no)?config\.([^=]+)", arg):
      _check_field(base, match[1])
  config, values = _parse_flags(argv, name)
  workdir = str(values["workdir"].value)
  if not workdir:
    raise UsageError("workdir must name a folder, got an empty --workdir=")
  return Command(
    config,
    pathlib.Path(workdir),
    bool(values["resume"].value),
    Hosts(
      str(values["hosts"].value),
      int(str(values["processes"].value)),
      int(str(values["process"].value)),
    ),
  )


def to_settings(settings_type: type[S], config: Mapping[str, Any]) -> S:
  """Turns a ConfigDict into a frozen dataclass, sections into nested ones.

  Args:
    settings_type: a dataclass with a field for every entry of the config;
      its `__post_init__` may refuse values by ValueError.
    config: the entries; lists become tuples. Where a section's dataclass has a
      `parse`, as `InverseSpec`, a name may stand for it.

  Returns:
    The settings.

  Raises:
    UsageError: an entry is unknown, missing or refused.
  """
  hints = typing.get_type_hints(settings_type)
  values = {}
  for name, value in config.items():
    if name not in hints:
      raise UsageError(
        f"config field {name!r} is unknown to {settings_type.__name__}, which "
        f"has {', '.join(hints)}"
      )
    if dataclasses.is_dataclass(hints[name]):
      value = _section(hints[name], value)
    values[name] = tuple(value) if isinstance(value, list) else value
  try:
    for name, value in values.items():
      check_elements(name, hints[name], value)
    return settings_type(**values)
  except (TypeError, ValueError) as error:
    raise UsageError(str(error)) from error


def _section(settings_type: Any, value: Any) -> Any:
  """A section as its dataclass; a name as what it stands for, by `parse`."""
  if isinstance(value, str) and hasattr(settings_type, "parse"):
    try:
      return settings_type.parse(value)
    except ValueError as error:
      raise UsageError(str(error)) from error
  return to_settings(settings_type, value)


def _config_argument(argv: Sequence[str]) -> Sequence[str]:
  """The part of the command line that names the config file."""
  for i, arg in enumerate(argv[1:], 1):
    if re.match(r"--?config=", arg):
      return argv[i : i + 1]
    if re.fullmatch(r"--?config", arg):
      return argv[i : i + 2]
  return []


def _with_flagfiles(argv: Sequence[str]) -> list[str]:
  """The command line with the lines of a --flagfile=FILE in its place."""
  try:
    return flags.FlagValues().read_flags_from_files(list(argv))
  except flags.Error as error:
    raise UsageError(_last_line(error)) from error


def _check_given_once(argv: Sequence[str]) -> None:
  """Refuses a config, or a field of it, that is repeated.

  Of most flags absl takes the last value, of a tuple's ml_collections takes all
  of them together. Of --workdir it is the last: what stops a run says which to
  add to the command, which may have one.
  """
  named = (
    re.match(r"--?(?:no)?(config(?:\.[\w.]+)?)(?:=|$)", arg) for arg in argv[1:]
  )
  given = collections.Counter(match[1] for match in named if match)
  for flag, times in given.items():
    if times > 1:
      raise UsageError(
        f"--{flag} is given {times} times; give it once, several values of a "
        'tuple together, as "(20,50)"'
      )


def _parse_flags(
  argv: Sequence[str], name: str
) -> tuple[ml_collections.ConfigDict, flags.FlagValues]:
  """Flag parsing by absl, with its many kinds of error made one."""
  values = flags.FlagValues()
  try:
    # The config flag is parsed on definition where its default stands.
    config_flags.DEFINE_config_file(
      "config",
      default=str(CONFIGS / f"{name}.py"),
      flag_values=values,
      sys_argv=list(argv),
    )
    flags.DEFINE_string(
      "workdir", f"runs/{name}", "folder of results", flag_values=values
    )
    flags.DEFINE_bool(
      "resume", False, "go on with the run in workdir", flag_values=values
    )
    flags.DEFINE_string(
      "hosts", "", "auto, or HOST:PORT of process 0", flag_values=values
    )
    flags.DEFINE_integer(
      "processes", 1, "how many there are", flag_values=values
    )
    flags.DEFINE_integer(
      "process", 0, "which of them this is", flag_values=values
    )
    rest = values(list(argv))
    config: Any = values["config"].value
    config.to_dict()  # a file that could not be read complains only now
  except OSError as error:
    file = " ".join(_config_argument(argv))
    raise UsageError(f"{file} names no readable config file") from error
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise UsageError(_last_line(error)) from error
  if len(rest) > 1:
    raise UsageError(f"unexpected argument {rest[1]!r}; see --help")
  return config, values


def _check_field(config: ml_collections.ConfigDict, path: str) -> None:
  section: Any = config
  for part in path.split("."):
    fields = sorted(section) if hasattr(section, "keys") else []
    if part not in fields:
      raise UsageError(
        f"unknown config field {path!r}: there is no {part!r}; this level has "
        f"{', '.join(fields) or 'no fields'}"
      )
    section = section[part]


def _last_line(error: Exception) -> str:
  """The error itself: absl puts a config file's whole traceback before it."""
  line = str(error).strip().splitlines()[-1].strip()
  switch = re.match(r"flag --(?:config\.)?([^=]+)=(.*): \('Non-boolean", line)
  if switch:
    return f"{switch[1]} must be True or False, got {switch[2]!r}"
  return line.removeprefix("ValueError: ").removeprefix("TypeError: ")


def _config_docstring(name: str) -> str:
  source = (CONFIGS / f"{name}.py").read_text()
  return ast.get_docstring(ast.parse(source)) or ""


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list:
  leaves = []
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      leaves += _leaves(value, f"{prefix}{name}.")
    else:
      leaves.append((prefix + name, value))
  return leaves
