"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

Studies take a `Tick`, called with a few words before every unit of work, and
know nothing of how it is shown.
"""

import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm

from experiments.harness.processes import hosts

Tick = Callable[[str], None]


def silent(_: str) -> None:
  """A tick that shows nothing."""


class Progress:
  """Counts units of work; an instance is a `Tick` and a context.

  Attributes:
    total: how many ticks are expected, 0 where nobody knows.
  """

  def __init__(
    self,
    total: int,
    *,
    label: str,
    stream: TextIO | None = None,
    every: float = 5.0,
    bar: bool = True,
  ):
    """Starts at zero.

    Args:
      total: how many ticks are expected, 0 where nobody knows.
      label: stands before the bar.
      stream: where to show it; None: stderr.
      every: seconds between plain lines.
      bar: whether a terminal gets a bar; several at once write over each other.
    """
    self.total = total
    self._label = label
    self._stream = sys.stderr if stream is None else stream
    self._every = every
    self._count = 0
    self._last = -every
    self._start = time.monotonic()
    self._bar = None
    if bar and self._stream.isatty() and hosts.is_first():
      self._bar = tqdm.tqdm(
        total=total or None, desc=label, file=self._stream, dynamic_ncols=True
      )

  def __call__(self, words: str) -> None:
    """Says what comes next; the unit before it counts as done."""
    now = time.monotonic() - self._start
    if self._bar is not None:
      self._bar.set_postfix_str(words, refresh=False)
      self._bar.update(min(self._count, 1))
    elif now - self._last >= self._every:
      self._last = now
      self._line(f"{words} ({now:.0f} s)")
    self._count += 1

  def note(self, words: str) -> None:
    """Says how a unit goes on that is not done yet."""
    now = time.monotonic() - self._start
    if self._bar is not None:
      self._bar.set_postfix_str(words)
    elif now - self._last >= self._every:
      self._last = now
      self._line(f"{words} ({now:.0f} s)")

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, kind: type | None, *_: object) -> None:
    if self._bar is not None:
      self._bar.update(min(self._count, 1))
      self._bar.close()
    elif kind is None:
      seconds = time.monotonic() - self._start
      self._line(f"done ({seconds:.0f} s)")

  def _line(self, words: str) -> None:
    if not hosts.is_first():
      return
    count = f"{self._count}/{self.total}" if self.total else f"{self._count}"
    # In one write: several threads may show their progress.
    self._stream.write(f"{self._label} {count} {words}\n")
    self._stream.flush()
