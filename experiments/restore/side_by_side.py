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
import threading
from collections.abc import Generator, Sequence

import jax

from experiments.harness.progress import Progress
from experiments.restore import job, study
from experiments.restore.common import Common
from experiments.restore.job import Say
from experiments.restore.settings import Settings
from experiments.restore.study import Found


class _Stopped(Exception):
  """The run has ended while a picture was under way."""


def computed(
  settings: Settings,
  files: Sequence[pathlib.Path],
  common: Common,
  folder: pathlib.Path,
) -> Generator[tuple[pathlib.Path, Found | str], None, None]:
  """Restores pictures on all devices of this process.

  Where the caller stops, by an error or Ctrl-C, pictures under way end with the
  step that they are in; what they have drawn by then is kept.

  Args:
    settings: of every picture.
    files: the pictures.
    common: what they share.
    folder: gets one for every picture, of its name.

  Yields:
    Of every file, in their order: what was computed, or why it is left out.

  Raises:
    OSError: a picture's folder cannot be written to: nor could the next one's.
  """
  devices = jax.local_devices()[: len(files)]
  free: queue.SimpleQueue[Common] = queue.SimpleQueue()
  for device in devices:
    free.put(common if len(devices) == 1 else common.on(device))
  stopped = threading.Event()

  def work(file: pathlib.Path) -> Found | str:
    own = free.get()
    try:
      with jax.default_device(own.device):
        return _computed(
          dataclasses.replace(settings, image=str(file)),
          own,
          folder / file.name,
          functools.partial(
            _Watched, stopped, label=file.name, bar=len(devices) == 1
          ),
        )
    finally:
      free.put(own)

  pool = concurrent.futures.ThreadPoolExecutor(len(devices))
  try:
    yield from zip(files, pool.map(work, files))
  finally:
    stopped.set()
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
  common: Common,
  folder: pathlib.Path,
  progress: "functools.partial[_Watched]",
) -> Found | str:
  """What was computed of a picture, or why it cannot be restored."""
  say = said_of(folder.name)
  try:
    one = job.prepare(settings, common, say=say)
  except (OSError, ValueError) as error:
    return str(error)
  # A disk that is full ends the run: the next picture would not fit either.
  folder.mkdir(exist_ok=True)
  try:
    return study.compute(one, folder, progress=progress, say=say)
  except ValueError as error:  # an image that is not finite
    return str(error)
