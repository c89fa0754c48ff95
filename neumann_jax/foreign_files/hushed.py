"""Warnings that nobody is to see, in programs of several threads.

`warnings.catch_warnings` puts back what it found. Of two threads in it at once
the second finds what the first has set, and where it leaves last, that stays:
the whole program then warns of nothing any more.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator

_LOCK = threading.Lock()
_found = contextlib.ExitStack()  # puts back what the first thread found
_inside = 0


@contextlib.contextmanager
def hushed(message: str = "") -> Iterator[None]:
  """Ignores warnings until the last thread that is within has left.

  Args:
    message: how those that are ignored begin, a regular expression; "": all.
  """
  global _inside
  with _LOCK:
    if not _inside:
      _found.enter_context(warnings.catch_warnings())
    _inside += 1
    warnings.filterwarnings("ignore", message)
  try:
    yield
  finally:
    with _LOCK:
      _inside -= 1
      if not _inside:
        _found.close()
