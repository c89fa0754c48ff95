"""Draws the benchmark's random kernels and masks once and freezes them.

  python -m experiments.freeze_assets

rewrites `posterior_jax/assets/frozen.npz` and its manifest. The kernels are
random paths in the manner of the 61-wide, intensity-0.5 motion generator that
the restoration benchmarks use: a walk whose steps turn by random angles on a
canvas twice as large, slightly blurred, reduced to 61 and normalised. Of 200
draws ten are kept: short, medium and long are those nearest to the 10th, 50th
and 90th percentile of path length, and p20 is the one nearest to the 20th.
"""

import hashlib
import io
import itertools
import json
import pathlib

import numpy as np
import scipy.ndimage
from absl import app

import posterior_jax.operators.resize as resize
from experiments.harness import writing

SIZE = 61
INTENSITY = 0.5
DRAWS = 200
SEED = 20260217
# By path length, as `frozen.ALL_PATHS`; above the 90th there is the middle of
# what is left.
PERCENTILES = {
  "short": 10,
  "p20": 20,
  "p30": 30,
  "p40": 40,
  "medium": 50,
  "p60": 60,
  "p70": 70,
  "p80": 80,
  "long": 90,
  "p95": 95,
}
FOLDER = pathlib.Path(__file__).parents[1] / "posterior_jax" / "assets"


def random_path(rng: np.random.Generator) -> np.ndarray:
  """Vertices of a random walk, [n, 2] pixels on the doubled canvas.

  Its length is proportional to U(0, 1) + U(0, intensity^2), and each step
  turns by a random angle that grows with the intensity.
  """
  diagonal = 2 * SIZE * np.sqrt(2)
  longest = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, INTENSITY**2))
  steps = rng.beta(1, 30, 256) * (1 - INTENSITY + 0.1) * diagonal
  steps = steps[np.cumsum(steps) <= longest]
  turns = rng.uniform(-1, 1, len(steps)) * INTENSITY * np.pi
  flips = rng.uniform(size=len(steps)) < 0.2 * INTENSITY
  heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns + np.pi * flips)
  moves = steps[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
  path = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
  return path - (path.min(0) + path.max(0)) / 2 + SIZE - 0.5


def render(path: np.ndarray) -> np.ndarray:
  """Draws a path on the doubled canvas and reduces it, [61, 61], sum 1."""
  canvas = np.zeros((2 * SIZE, 2 * SIZE))
  for start, end in itertools.pairwise(path):
    count = max(int(8 * np.linalg.norm(end - start)), 1)
    points = start + (np.arange(count)[:, None] + 0.5) / count * (end - start)
    cells = np.clip(np.round(points).astype(int), 0, 2 * SIZE - 1)
    weight = np.linalg.norm(end - start) / count
    np.add.at(canvas, (cells[:, 0], cells[:, 1]), weight)
  if canvas.sum() == 0:
    canvas[SIZE, SIZE] = 1
  canvas = scipy.ndimage.gaussian_filter(canvas, 1.0)
  reduce = resize.cubic_matrix(2 * SIZE, 2)
  kernel = np.maximum(reduce @ canvas @ reduce.T, 0)
  return kernel / kernel.sum()


def path_length(path: np.ndarray) -> float:
  """Length in pixels of the reduced kernel."""
  return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / 2)


def draw() -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """All frozen arrays, and the length of each motion path."""
  rng = np.random.default_rng(SEED)
  paths = [random_path(rng) for _ in range(DRAWS)]
  lengths = np.array([path_length(p) for p in paths])
  arrays: dict[str, np.ndarray] = {}
  chosen: dict[str, float] = {}
  for name, percentile in PERCENTILES.items():
    target = np.percentile(lengths, percentile)
    index = int(np.argmin(np.abs(lengths - target)))
    arrays[f"motion_{name}"] = render(paths[index]).astype(np.float32)
    chosen[name] = round(float(lengths[index]), 2)
  mask = np.ones(256 * 256, np.uint8)
  mask[rng.permutation(256 * 256)[: int(0.7 * 256 * 256)]] = 0
  arrays["random_mask"] = mask.reshape(256, 256)
  arrays["box_corner"] = rng.integers(32, 96, 2).astype(np.int32)
  return arrays, chosen


def main(argv: list[str]) -> None:
  """Writes the arrays and the manifest."""
  del argv
  arrays, lengths = draw()
  path = FOLDER / "frozen.npz"
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
  writing.write(path, buffer.getvalue())
  manifest = {
    "file": path.name,
    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    "made_by": "python -m experiments.freeze_assets",
    "seed": SEED,
    "path_length_pixels": lengths,
    "arrays": {k: [list(v.shape), str(v.dtype)] for k, v in arrays.items()},
  }
  words = json.dumps(manifest, indent=1) + "\n"
  writing.write(FOLDER / "frozen.json", words)
  print(f"wrote {path}: path lengths {lengths}")


if __name__ == "__main__":
  app.run(main)
