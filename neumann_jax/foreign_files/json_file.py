"""JSON files: small, shallow, of finite numbers, and of the promised types."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import msgspec

from . import folder
from .messages import as_json, clean

# A parsed list takes up to 27 times its text, an object more.
MOST_BYTES = 2 << 20
# Those of published models have five.
MOST_DEPTH = 32
# An index of a model of 400 billion parameters names 92,000 tensors.
MOST_NAMES = 300_000

T = TypeVar("T")
Plain = str | int | float | bool | None

_WORDS = {
  "int": "an integer",
  "float": "a number",
  "bool": "true or false",
  "str": "a string",
  "array": "a list",
  "object": "an object",
  "null": "null",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`( [<>]=? [-\d.e]+)?")


def read(path: pathlib.Path) -> Any:
  """What a file says.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is not JSON of finite numbers, larger or deeper than
      files of its kind are; a clause without its name.
  """
  data = folder.read(path, most=MOST_BYTES)
  try:
    value = msgspec.json.decode(data)
  except RecursionError:
    raise ValueError(f"nested more than {MOST_DEPTH} deep") from None
  except (msgspec.MsgspecError, UnicodeDecodeError) as error:
    raise ValueError(clean(str(error))) from None
  # By levels: recursion is what a deep file is made for.
  level = [value] if isinstance(value, dict | list) else []
  for _ in range(MOST_DEPTH):
    if not level:
      return value
    level = [child for parent in level for child in _inner(parent)]
  raise ValueError(f"nested more than {MOST_DEPTH} deep")


def read_names(path: pathlib.Path, field: str) -> dict[str, Plain]:
  """The object under one key of a large file, whose values are plain.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is larger, or says no such thing; a clause.
  """
  data = folder.read(path, most=16 * MOST_BYTES)
  # Entries of two letters take thirty times their text: counted, not parsed.
  if data.count(b'"') > 4 * MOST_NAMES:
    raise ValueError(f"names more than {MOST_NAMES} tensors")
  # What stands beside the field is passed over, never built.
  kind = msgspec.defstruct("File", [(field, dict[str, Plain])])
  try:
    return getattr(msgspec.json.decode(data, type=kind), field)
  except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(clean(str(error))) from None


def typed(value: Any, kind: type[T], *, name: str = "") -> T:
  """The value as a type: a number, a dataclass, a list of them.

  Args:
    value: from a JSON file.
    kind: what it must be. Integers are numbers too; `true` is no integer.
    name: of the value, where it has one.

  Raises:
    ValueError: naming the first field that is not, or as `kind` raises it.
  """
  try:
    return msgspec.convert(value, kind)
  except RecursionError:
    raise ValueError(f"{name or 'it'} is nested too deeply") from None
  except msgspec.ValidationError as error:
    if isinstance(error.__cause__, ValueError):  # of a dataclass itself
      raise ValueError(clean(str(error.__cause__), most=240)) from None
    raise ValueError(_sentence(error, value, name)) from None


def fields(value: Any, kind: type[T], *, name: str) -> T:
  """An object as a dataclass that has all of its fields.

  Raises:
    ValueError: as `typed`, and for a field that the dataclass has not.
  """
  unknown = set(typed(value, dict[str, Any], name=name))
  unknown -= {field.name for field in dataclasses.fields(cast(Any, kind))}
  if unknown:
    raise ValueError(f"{name} has no field {as_json(min(unknown))}")
  return typed(value, kind, name=name)


def _inner(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
  """The objects and lists in one, but for those that hold nothing."""
  held = value.values() if isinstance(value, dict) else value
  return (child for child in held if child and isinstance(child, dict | list))


def _sentence(error: Exception, value: Any, name: str) -> str:
  """msgspec's words as ours, with the value that it leaves out."""
  said, _, path = str(error).partition(" - at `$")
  steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", path)
  for key, index in steps:
    value = value[key] if isinstance(value, Mapping) else value[int(index)]
    name = key or name
  expected = _EXPECTED.match(said)
  if expected is None or "..." in path:
    return clean(f"{name}: {said}" if name else said, most=160)
  words = " or ".join(_WORDS.get(k, k) for k in expected[1].split(" | "))
  bound = expected[2] or ""
  return f"{name or 'it'} must be {words}{bound}, got {as_json(value)}"
