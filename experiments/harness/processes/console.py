"""What a run says, where it cannot be said: no words are worth the work.

Standard output may be ASCII, full, or closed by who read it. Then letters are
written as escapes, and what finds no room is dropped; the run goes on, and its
end says so.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

LOST = 1  # exit code of a run that could not say all it had to


class _Steady:
  """A stream whose writes do not fail.

  Attributes:
    lost: the first error, None as long as there is none.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream
    self.lost: OSError | None = None

  def write(self, words: str) -> int:
    self._try(lambda: self._stream.write(words))
    # Line by line: a full disk is met here, not when the interpreter ends.
    if "\n" in words:
      self.flush()
    return len(words)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, call: Any) -> None:
    try:
      call()
    except OSError as error:
      self.lost = self.lost or error
      # What is still in the buffer goes there, not into a second error.
      with contextlib.suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def steady(name: str) -> Iterator[None]:
  """Standard output and errors that do not end a run.

  Args:
    name: of the experiment.

  Raises:
    SystemExit: at the end, if standard output did not take everything.
  """
  before = sys.stdout, sys.stderr
  for stream in before:
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  out, err = _Steady(sys.stdout), _Steady(sys.stderr)
  sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
  try:
    yield
    out.flush()
    if out.lost is not None and not isinstance(out.lost, BrokenPipeError):
      print(
        f"{name}: standard output was not written ({out.lost.strerror}); "
        "the results are",
        file=err,
      )
      raise SystemExit(LOST)
  finally:
    sys.stdout, sys.stderr = before
