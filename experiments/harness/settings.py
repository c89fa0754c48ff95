"""Settings whose ranges stand beside their fields.

    @dataclasses.dataclass(frozen=True)
    class Settings(Checked):
      steps: int = setting(at_least=1)
      sizes: tuple[int, ...] = setting(at_least=16, multiple_of=8, some=True)
      dtype: str = setting("bfloat16", among=DTYPES)

A value out of range is refused in one sentence when the dataclass is made,
from a config or in code. A field `seed` has the range of `SEEDS` without being
told. Rules between fields go into `__post_init__`, after
`super().__post_init__()`.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Collection
from typing import Any

_KEY = "range"


@dataclasses.dataclass(frozen=True)
class Range:
  """What a field's value, or every element of a tuple, may be."""

  at_least: float | None = None  # least value
  above: float | None = None  # what it must exceed
  at_most: float | None = None  # greatest value
  below: float | None = None  # what it must stay under
  multiple_of: int | None = None  # what divides it
  among: Collection[Any] | None = None  # the values themselves
  some: bool = False  # whether a tuple must not be empty
  distinct: bool = False  # whether its elements must differ
  # "NAME must ...", in place of the sentence made of the above; what was got is
  # appended
  words: str = ""

  def holds(self, value: Any) -> bool:
    """Whether one value is in range; NaN never is."""
    tests: list[tuple[Any, Callable[[Any], bool]]] = [
      (self.at_least, lambda bound: value >= bound),
      (self.above, lambda bound: value > bound),
      (self.at_most, lambda bound: value <= bound),
      (self.below, lambda bound: value < bound),
      (self.multiple_of, lambda bound: value % bound == 0),
      (self.among, lambda known: value in known),
    ]
    return all(test(bound) for bound, test in tests if bound is not None)

  def sentence(self, name: str, *, many: bool) -> str:
    """What the field must be, without what was got."""
    if self.words:
      return self.words
    parts = [self._interval()]
    if self.multiple_of is not None:
      verb = "" if parts[0].startswith("be") else "be "
      parts.append(f"{verb}divisible by {self.multiple_of}")
    if self.among is not None:
      parts.append(_choice(list(map(str, self.among)), many=many))
    return f"{name} must {' and '.join(filter(None, parts))}"

  def _interval(self) -> str:
    low = self.at_least if self.above is None else self.above
    high = self.at_most if self.below is None else self.below
    if low is None and high is None:
      return ""
    if high is None:
      if self.above is None:
        return f"be at least {low}"
      return "be positive" if low == 0 else f"be above {low}"
    if low is None:
      return f"be {'at most' if self.below is None else 'below'} {high}"
    left = "[" if self.above is None else "("
    right = "]" if self.below is None else ")"
    return f"lie in {left}{low}, {high}{right}"

  def check(self, name: str, value: Any) -> None:
    """Raises ValueError, one sentence, where the value is out of range."""
    many = isinstance(value, tuple | list)
    if (self.some or self.distinct) and not many:
      raise ValueError(f"{name} must be a tuple, got {value!r}")
    if self.some and not value:
      words = f"{name} must be a tuple of at least one"
      if self.among is not None:
        words = f"{name} must name some of {', '.join(map(str, self.among))}"
      raise ValueError(f"{self.words or words}, got {value}")
    if self.distinct and len(set(value)) < len(value):
      raise ValueError(f"{name} must not repeat, got {value}")
    for each in value if many else (value,):
      # No field with a range means it, and what is made of it is NaN.
      if isinstance(each, float) and math.isinf(each):
        raise ValueError(f"{name} must be finite, got {each!r}")
      if not self.holds(each):
        raise ValueError(f"{self.sentence(name, many=many)}, got {each!r}")


def setting(default: Any = dataclasses.MISSING, **limits: Any) -> Any:
  """A field of a `Checked` dataclass.

  Args:
    default: its value where a config has none.
    **limits: the fields of `Range`.
  """
  metadata = {_KEY: Range(**limits)}
  return dataclasses.field(default=default, metadata=metadata)


# Those of a network's arithmetic.
DTYPES = ("float32", "bfloat16")

# What NumPy (none below 0) and JAX (which drops the bits from the 33rd on) both
# tell apart.
SEEDS = Range(at_least=0, at_most=2**31 - 1)


class Checked:
  """Base of settings: refuses values out of their fields' ranges."""

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      limits = SEEDS if field.name == "seed" else field.metadata.get(_KEY)
      if limits is not None:
        limits.check(field.name, getattr(self, field.name))


# Kinds of elements: types, and their name in a sentence.
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
  int: ((int,), "whole numbers"),
  float: ((int, float), "numbers"),
  str: ((str,), "words in quotes"),
}


def check_elements(name: str, hint: Any, value: Any) -> None:
  """Raises ValueError where a tuple's elements are not of its hint's kind.

  Flags of ml_collections take anything for an element, and for one alone.

  Args:
    name: of the field.
    hint: its type; what is no tuple of numbers or words may hold anything.
    value: of the field.
  """
  if not _fills(hint, value):
    raise ValueError(f"{name} must be {_kind(hint)}, got {value!r}")


def _holds(hint: Any, value: Any) -> bool:
  if hint in _KINDS:
    return isinstance(value, _KINDS[hint][0]) and not isinstance(value, bool)
  return _fills(hint, value)


def _fills(hint: Any, value: Any) -> bool:
  """Whether a value is a tuple as its hint says, or the hint is of no tuple."""
  if typing.get_origin(hint) is not tuple:
    return True
  if not isinstance(value, tuple | list):
    return False
  kinds = typing.get_args(hint)
  kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
  return len(kinds) == len(value) and all(map(_holds, kinds, value))


def _kind(hint: Any) -> str:
  first, *rest = typing.get_args(hint)
  count = "" if Ellipsis in rest else f"{1 + len(rest)} "
  if first in _KINDS:
    return f"a tuple of {count}{_KINDS[first][1]}"
  return f"a tuple of {_kind(first).replace('a tuple', 'tuples')}"


def _choice(known: list[str], *, many: bool) -> str:
  if many:
    return f"be among {', '.join(known)}"
  if len(known) <= 2:
    return f"be {' or '.join(known)}"
  return f"be one of {', '.join(known)}"
