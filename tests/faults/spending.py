"""What a call takes: seconds of the processor, and memory at its peak."""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Iterator

import pytest

_PROC = pathlib.Path("/proc/self")


class Spent:
  """Filled in at the end.

  Attributes:
    seconds: of the processor, all threads: other processes do not count.
    megabytes: by which resident memory rose at the most.
  """

  seconds = megabytes = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Spent]:
  """Measures the block; Linux alone keeps peaks that can be reset."""
  if not (_PROC / "clear_refs").exists():
    pytest.skip("memory is measured on Linux alone")
  # What was freed and kept would hide what the block takes.
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
  (_PROC / "clear_refs").write_text("5")  # the peak is what is held now
  before, start, spent = _status("VmRSS"), time.process_time(), Spent()
  try:
    yield spent
  finally:
    spent.seconds = time.process_time() - start
    spent.megabytes = (_status("VmHWM") - before) / 1024


@contextlib.contextmanager
def cheap(*, seconds: float = 1.0, megabytes: float = 200.0) -> Iterator[None]:
  """The block stays below what a refusal may take."""
  with measured() as spent:
    yield
  assert spent.seconds < seconds, f"{spent.seconds:.2f} s"
  assert spent.megabytes < megabytes, f"{spent.megabytes:.0f} MB"


def _status(name: str) -> int:
  """Kilobytes."""
  for line in (_PROC / "status").read_text().splitlines():
    if line.startswith(name):
      return int(line.split()[1])
  raise KeyError(name)
