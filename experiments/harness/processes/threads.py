"""Work in threads: programs compile beside each other, results as they come."""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(
  work: Callable[[T], R], items: Iterable[T], workers: int
) -> Iterator[R]:
  """What `work` makes of every item, whichever is done first.

  Where the caller stops, by an error or Ctrl-C, items that have not begun are
  dropped and those under way are not waited for.

  Args:
    work: called from several threads; its first error ends the iteration.
    items: what it is called with.
    workers: threads, at least 1.

  Yields:
    One result an item.
  """
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    futures = [pool.submit(work, item) for item in items]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  finally:
    pool.shutdown(wait=False, cancel_futures=True)
