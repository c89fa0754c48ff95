"""Measures the rounding figures that `neumann_jax.plan` looks up.

  python -m experiments.rounding_table

takes about ten minutes on two CPU cores and rewrites
`neumann_jax/assets/rounding.json`: for every exact product form and every
arithmetic, twice the worst row sum of |T - X| over the adversarial key
families, against the float64 inverse of the same float32 A.
"""

import itertools
import json
import pathlib
import typing
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from tqdm import tqdm

import neumann_jax.assets
from experiments.data import key_families
from experiments.harness import writing
from experiments.harness.subjects.matrix_errors import approximate
from neumann_jax.chunk_inverse import planner
from neumann_jax.chunk_inverse.integer import QuantSpec, Scale
from neumann_jax.chunk_inverse.inverse_spec import PRECISIONS, InverseSpec

CHUNK_SIZES = (16, 32, 64, 128)
BETAS = {"beta<=1": (0.6, 1.0), "beta<=2": (1.0, 2.0)}
SAFETY = 2.0
DRAWS = 64  # chunks per family and decay


def specs() -> Iterator[InverseSpec]:
  """Every spec that has a row of its own."""
  yield InverseSpec("exact")
  quants = [
    QuantSpec(bits, scale)
    for bits, scale in itertools.product((4, 8, 16), typing.get_args(Scale))
  ]
  forms: list[dict] = [{"precision": p} for p in PRECISIONS]
  forms += [{"quant": q} for q in quants]
  for form in forms:
    yield InverseSpec("ladder", **form)
    yield InverseSpec("ladder", refine=1, **form)
    yield InverseSpec("newton", **form)


def hard_chunks(
  chunk_size: int, beta: tuple[float, float], draws: int, seed: int = 0
) -> key_families.Chunks:
  """All families at all decays in one batch, `draws` chunks of each."""
  parts = [
    key_families.draw(
      family,
      seed=seed + 1000 * i,
      count=draws,
      chunk_size=chunk_size,
      beta=beta,
      decay=decay,
    )
    for family in key_families.FAMILIES
    for i, decay in enumerate(key_families.DECAYS)
  ]
  return key_families.Chunks(*map(np.concatenate, zip(*parts)))


def worst_row_sum(
  spec: InverseSpec, chunks: key_families.Chunks, truth: np.ndarray
) -> float:
  """Largest row sum of |T - X| over a batch; infinite if X is not finite."""
  a, *gates = (jnp.asarray(x, jnp.float32) for x in (chunks.a, *chunks[1:]))
  x = approximate(a, neumann_jax.envelope(*gates), spec, "xla")
  sums = np.abs(truth - np.asarray(x, np.float64)).sum(-1).max()
  return float(sums) if np.isfinite(sums) else float("inf")


def measure(draws: int = DRAWS, chunk_sizes: tuple = CHUNK_SIZES) -> dict:
  """The whole table, as stored."""
  table: dict = {}
  todo = list(itertools.product(chunk_sizes, BETAS))
  for chunk_size, name in tqdm(todo, desc="rounding table"):
    chunks = hard_chunks(chunk_size, BETAS[name], draws)
    truth = key_families.exact_inverse(chunks.a.astype(np.float32))
    for spec in specs():
      row = table.setdefault(planner.rounding_key(spec), {})
      worst = SAFETY * worst_row_sum(spec, chunks, truth)
      row.setdefault(str(chunk_size), {})[name] = float(f"{worst:.3g}")
  return {
    "measured": (
      f"{SAFETY:g} x the worst row sum of |T - X| over {draws} draws of each "
      f"of {len(key_families.FAMILIES)} key families at decays "
      f"{key_families.DECAYS}, width 128, beta uniform in {BETAS}; jax "
      f"{jax.__version__} on {jax.devices()[0].platform}"
    ),
    "bounds": table,
  }


def main(argv: list[str]) -> None:
  """Writes the asset."""
  del argv
  folder = pathlib.Path(neumann_jax.assets.__path__[0])
  path = folder / "rounding.json"
  writing.write(path, json.dumps(measure(), indent=1) + "\n")
  print(f"wrote {path}")


if __name__ == "__main__":
  app.run(main)
