"""Frozen random draws of the benchmark: loaded once, verified by SHA-256.

Written by `python -m experiments.freeze_assets`; see `assets/frozen.json`.

Of 200 random paths ten are motion kernels here. `PATHS` are the three that
all benchmarks report: "short", "medium" and "long", the draws nearest to the
10th, 50th and 90th percentile of path length. `ALL_PATHS` are all ten by
increasing length: "p20" is the draw nearest to the 20th percentile, and so on.
"""

import functools
import hashlib
import importlib.resources
import json

import numpy as np

PATHS = ("short", "medium", "long")
ALL_PATHS = (
  "short",
  "p20",
  "p30",
  "p40",
  "medium",
  "p60",
  "p70",
  "p80",
  "long",
  "p95",
)


def motion_kernel(name: str) -> np.ndarray:
  """A frozen motion kernel, [61, 61] float32, sum 1.

  Args:
    name: of `ALL_PATHS`.

  Raises:
    ValueError: for another name, or if the stored file was altered.
  """
  if name not in ALL_PATHS:
    raise ValueError(
      f"kernel must be one of {', '.join(ALL_PATHS)} or an array; got {name!r}"
    )
  return _arrays()[f"motion_{name}"]


def random_mask() -> np.ndarray:
  """The frozen 70 % random mask at 256 x 256: [256, 256], 1 = observed."""
  return _arrays()["random_mask"]


def box_corner() -> tuple[int, int]:
  """Top-left corner (row, column) of the frozen 128 box in 256 x 256."""
  row, column = _arrays()["box_corner"]
  return int(row), int(column)


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
  # Verified at every start: a result that cannot be compared is worse than
  # none.
  folder = importlib.resources.files("posterior_jax") / "assets"
  manifest = json.loads((folder / "frozen.json").read_text())
  data = (folder / manifest["file"]).read_bytes()
  verify(data, manifest["sha256"], manifest["file"])
  with importlib.resources.as_file(folder / manifest["file"]) as path:
    # No pickle: a data file must not be able to run code.
    with np.load(path, allow_pickle=False) as arrays:
      found = {name: arrays[name] for name in arrays.files}
  for array in found.values():
    array.setflags(write=False)  # what was verified is everybody's
  return found


def verify(data: bytes, expected: str, name: str) -> None:
  """Raises ValueError naming the file unless its SHA-256 is as expected."""
  found = hashlib.sha256(data).hexdigest()
  if found != expected:
    raise ValueError(
      f"{name} is not the frozen file: its SHA-256 is {found[:12]}..., "
      f"expected {expected[:12]}...; reinstall the package"
    )
