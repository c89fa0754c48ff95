"""The pickle of a dict of arrays, by a machine that can do nothing else.

A pickle is a program. Python's own machine for it runs any function, hashes and
compares what the program makes, and sets aside the memory that it asks for;
this one knows the few operations of a dict of arrays, calls the names that it
is given, none of which is the real thing, and counts as it goes.
"""

import pickletools
from collections import OrderedDict
from typing import Any, Protocol, runtime_checkable

from posterior_jax.foreign_files.messages import clean
from posterior_jax.priors.checkpoints.torch_archive import Refused
from posterior_jax.priors.checkpoints.torch_tensors import Function

# A tensor takes forty operations and twelve memo entries.
MOST_OPERATIONS = 200_000
MOST_MEMO = 100_000
# Of a state dict the tuples of a tensor's shape lie deepest, at two.
MOST_DEPTH = 8
# torch puts a thousand entries of a dict on the stack, in twos.
MOST_STACK = 20_000
MOST_TEXT = 1000  # letters of a name


class _Tuple(tuple):
  """A tuple that knows how deep its tuples go: nobody has to look."""

  depth: int = 1


class _Mark:
  """Where the operands of the next operation begin."""


_MARK = _Mark()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = (
  *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"),
  *("BINFLOAT", "FLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
  *("UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING"),
  *("BINBYTES", "SHORT_BINBYTES"),
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Names(Protocol):
  """What stands for the names of a pickle and for what lies outside of it."""

  def find(self, module: Any, name: Any) -> Any:
    """What stands for a name; Refused for any that no array needs."""

  def storage(self, pid: Any) -> Any:
    """What a persistent id stands for."""


@runtime_checkable
class Stateful(Protocol):
  """What a function may return to be given its contents by BUILD."""

  def build(self, state: Any) -> None:
    """Takes the contents."""


def load(data: bytes, names: Names) -> Any:
  """What a pickle describes: dicts, lists, tuples, numbers, names, arrays.

  Args:
    data: the pickle.
    names: of its classes and functions.

  Returns:
    Mostly a dict of arrays.

  Raises:
    Refused: for an operation or a name that no dict of arrays needs, and for
      one that is broken or over budget.
  """
  try:
    return _Machine(names).run(data)
  except Refused:
    raise
  except Exception as error:  # anything can come of a broken pickle
    raise Refused(f"has a pickle that is broken: {clean(str(error))}") from None


class _Machine:
  """A stack, a memo, and what the operations do to them."""

  def __init__(self, names: Names) -> None:
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}
    self._names = names

  def run(self, data: bytes) -> Any:
    operations = pickletools.genops(data)
    for count, (operation, argument, _) in enumerate(operations):
      if count >= MOST_OPERATIONS:
        raise Refused(f"has a pickle of over {MOST_OPERATIONS} operations")
      if len(self._stack) > MOST_STACK or len(self._memo) > MOST_MEMO:
        raise Refused("has a pickle that keeps more than arrays need")
      if operation.name == "STOP":
        return self._stack[-1]
      self._step(operation.name, argument)
    raise ValueError("it does not end")

  def _step(self, name: str, argument: Any) -> None:
    push = self._stack.append
    if name in _LITERALS:
      if isinstance(argument, str) and len(argument) > MOST_TEXT:
        raise Refused(f"has a name of {len(argument)} letters in its pickle")
      push(argument)
    elif name in _CONSTANTS:
      push(_CONSTANTS[name])
    elif name == "MARK":
      push(_MARK)
    elif name in _TUPLES:
      push(_tuple(self._pop(_TUPLES[name])))
    elif name == "TUPLE":
      push(_tuple(self._to_mark()))
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
      push({} if name == "EMPTY_DICT" else [])
    elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
      self._memo[len(self._memo) if argument is None else argument] = (
        self._stack[-1]
      )
    elif name in ("BINGET", "LONG_BINGET", "GET"):
      push(self._memo[argument])
    elif name in ("PROTO", "FRAME"):
      pass
    else:
      self._act(name, argument)

  def _act(self, name: str, argument: Any) -> None:
    """What changes or makes more than a plain value."""
    push, pop = self._stack.append, self._pop
    if name == "GLOBAL":
      push(self._names.find(*argument.split(" ", 1)))
    elif name == "STACK_GLOBAL":
      push(self._names.find(*pop(2)))
    elif name == "BINPERSID":
      push(self._names.storage(*pop(1)))
    elif name == "REDUCE":
      function, arguments = pop(2)
      push(_called(function, arguments))
    elif name in ("SETITEM", "SETITEMS"):
      items = pop(2) if name == "SETITEM" else self._to_mark()
      _put(self._stack[-1], items)
    elif name in ("APPEND", "APPENDS"):
      items = pop(1) if name == "APPEND" else self._to_mark()
      if type(self._stack[-1]) is not list:
        raise ValueError("it appends to what is no list")
      self._stack[-1].extend(items)
    elif name == "BUILD":
      (state,) = pop(1)
      _build(self._stack[-1], state)
    else:
      raise Refused(f"has {name} in its pickle, which no dict of arrays needs")

  def _pop(self, count: int) -> list[Any]:
    found = self._stack[len(self._stack) - count :]
    if len(found) < count or any(value is _MARK for value in found):
      raise ValueError("an operand is missing")
    del self._stack[len(self._stack) - count :]
    return found

  def _to_mark(self) -> list[Any]:
    place = len(self._stack) - 1
    while place >= 0 and self._stack[place] is not _MARK:
      place -= 1
    if place < 0:
      raise ValueError("a mark is missing")
    found = self._stack[place + 1 :]
    del self._stack[place:]
    return found


def _tuple(items: list[Any]) -> _Tuple:
  made = _Tuple(items)
  inner = [item.depth for item in items if isinstance(item, _Tuple)]
  made.depth = 1 + max(inner, default=0)
  if made.depth > MOST_DEPTH:
    raise Refused(f"has tuples more than {MOST_DEPTH} deep in its pickle")
  return made


def _called(function: Any, arguments: Any) -> Any:
  if not isinstance(function, Function) or not isinstance(arguments, _Tuple):
    raise ValueError("it calls what is no function")
  if function.call is OrderedDict and arguments:
    raise ValueError("an OrderedDict begins empty")
  return function.call(*arguments)


def _build(target: Any, state: Any) -> None:
  if isinstance(target, Stateful):
    target.build(state)
  # An OrderedDict's _metadata: versions of layers, which are left out.
  elif not isinstance(target, OrderedDict) or type(state) is not dict:
    raise ValueError("it sets the attributes of what has none")


def _put(target: Any, items: list[Any]) -> None:
  """Entries into a dict whose keys take no time to hash."""
  if not isinstance(target, dict) or len(items) % 2:
    raise ValueError("it has entries of what is no dict")
  for key, value in zip(items[::2], items[1::2]):
    short = isinstance(key, int) and abs(key) < 2**31
    if not (short or isinstance(key, str)):
      kind = "tuple" if isinstance(key, tuple) else type(key).__name__
      raise Refused(f"has a key of type {kind} in its pickle")
    target[key] = value
