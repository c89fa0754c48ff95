"""Ctrl-C: an exception wherever one can be raised, and never a trace."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import experiments

AGAIN = 0.02  # seconds


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Ctrl-C is a KeyboardInterrupt inside; `experiments` left in mid-import."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
  timers: list[threading.Timer] = []

  def unraisable(error: Any) -> None:
    if error.exc_type is not KeyboardInterrupt:
      hook(error)
      return
    # Python met Ctrl-C where it can raise nothing, as when a weak reference
    # dies, and goes on; so it is told again.
    timers.append(threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)))
    timers[-1].start()

  sys.unraisablehook = unraisable
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    yield
  finally:
    for timer in timers:
      timer.cancel()
      timer.join()
    sys.unraisablehook = hook
    # All is said and written: what is left of a command's process is taken
    # down without the traces of what Ctrl-C meets there.
    own = before is experiments.leave
    signal.signal(signal.SIGINT, signal.SIG_DFL if own else before)


def ignore() -> None:
  """Until the end of `heard`: an impatient hand asks twice."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
