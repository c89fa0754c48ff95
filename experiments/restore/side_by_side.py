"""Pictures restored side by side, one on every device.

Each device has a thread, a copy of the prior and programs of its own; the main
thread writes what they computed. A picture is restored as it would be alone on
one device: nothing is batched, so that no picture's solve waits for another's.
"""

import concurrent.futures
import dataclasses
import functools
import pathlib
import queue
import sys
import threading
from collections.abc import Generator, Sequence

import jax

from experiments.harness.progress import Progress
from experiments.restore import job, study
from experiments.restore.doubt import NotFinite
from experiments.restore.job import Say
from experiments.restore.settings import Settings
from experiments.restore.shared_inputs import SharedInputs
from experiments.restore.study import Found
from posterior_jax.foreign_files.messages import first_line

AHEAD = 2  # pictures a device that are begun or wait to be written, at most


class _Stopped(Exception):
  """The run has ended while a picture was under way."""


def computed(
  settings: Settings,
  files: Sequence[pathlib.Path],
  common: SharedInputs,
  folder: pathlib.Path,
) -> Generator[tuple[pathlib.Path, Found | str], None, None]:
  """Restores pictures on all devices of this process.

  Where the caller stops or a picture fails, by an error or Ctrl-C, none is
  begun any more and pictures under way end with the step that they are in; what
  they have drawn by then is kept.

  Args:
    settings: of every picture.
    files: the pictures.
    common: what they share.
    folder: gets one for every picture, of its name.

  Yields:
    Of every file, in their order: what was computed, or why it is left out.

  Raises:
    OSError: a picture's folder cannot be written to: nor could the next one's.
    Exception: whatever else is no fault of one picture.
  """
  devices = jax.local_devices()[: len(files)]
  free: queue.SimpleQueue[SharedInputs] = queue.SimpleQueue()
  for device in devices:
    free.put(common if len(devices) == 1 else common.on(device))
  # Whole pictures wait in memory for a slow one that is written before them.
  room = threading.Semaphore(AHEAD * len(devices))
  stopped = threading.Event()
  failed: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

  def work(number: int, file: pathlib.Path) -> Found | str:
    room.acquire()
    if stopped.is_set():
      raise _Stopped
    own = free.get()
    try:
      with jax.default_device(own.device):
        return _computed(
          dataclasses.replace(settings, image=str(file)),
          own,
          folder / file.name,
          functools.partial(
            _Watched,
            stopped,
            label=f"{number} of {len(files)}, {file.name}",
            bar=len(devices) == 1,
          ),
        )
    except _Stopped:
      raise
    except BaseException as error:
      failed.put(error)
      stopped.set()
      raise
    finally:
      free.put(own)

  pool = concurrent.futures.ThreadPoolExecutor(len(devices))
  try:
    for found in zip(files, pool.map(work, range(1, len(files) + 1), files)):
      yield found
      room.release()
  except _Stopped:
    # By another picture's error, whose turn has not come.
    raise failed.get_nowait() from None
  finally:
    stopped.set()
    room.release(len(files))  # to whoever waits for it, and ends
    under_way = len(devices) - free.qsize()
    if under_way:
      those = "a picture" if under_way == 1 else f"{under_way} pictures"
      said = f"waiting for {those} under way; what is drawn is kept\n"
      print(said, end="", file=sys.stderr, flush=True)
    # Whoever is under way may still keep what it has drawn, in a folder that
    # must not be another run's by then.
    pool.shutdown(wait=True, cancel_futures=True)


def said_of(name: str) -> Say:
  """Prints lines about a picture, each in one piece and with its name."""
  return lambda line: print(f"{name}: {line}\n", end="", flush=True)


class _Watched(Progress):
  """Shows progress until the run ends."""

  def __init__(
    self, stopped: threading.Event, total: int, *, label: str, bar: bool
  ):
    super().__init__(total, label=label, bar=bar)
    self._stopped = stopped

  def __call__(self, words: str) -> None:
    if self._stopped.is_set():
      raise _Stopped
    super().__call__(words)


def _computed(
  settings: Settings,
  common: SharedInputs,
  folder: pathlib.Path,
  progress: "functools.partial[_Watched]",
) -> Found | str:
  """What was computed of a picture, or why it cannot be restored."""
  say = said_of(folder.name)
  try:
    try:
      one = job.prepare(settings, common, say=say)
    except (OSError, ValueError) as error:
      return str(error)
    # A disk that is full ends the run: the next picture would not fit either.
    folder.mkdir(exist_ok=True)
    return study.compute(one, folder, progress=progress, say=say)
  except NotFinite as error:
    return str(error)
  except jax.errors.JaxRuntimeError as error:
    # Of a picture that is too large for the device, for one; the next line on
    # are tables of what lies in its memory.
    return first_line(error)
