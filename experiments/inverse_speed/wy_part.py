"""The stage k, v, log_decay, beta -> u, w of the speed study, beside fla's."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import device_keys, key_families
from experiments.harness.progress import Tick
from experiments.harness.speed import timing
from experiments.harness.speed.timing import Job, Timing
from experiments.inverse_speed.cases import Case
from experiments.inverse_speed.inverse_part import COPY
from experiments.peers import gpu

FLA = "fla"
LIMIT = "byte limit"
BETA = (0.6, 1.0)
EVALUATED = 8  # chunks compared with float64, spread evenly over the sequence


class Inputs(NamedTuple):
  """What the stage reads."""

  k: jax.Array  # [1, T, H, D] bfloat16, unit keys of all families
  v: jax.Array  # [1, T, H, D] bfloat16
  log_decay: jax.Array  # [1, T, H] float32
  beta: jax.Array  # [1, T, H] float32


def draw(
  seed: int, tokens: int, heads: int, dim: int, chunk_size: int
) -> Inputs:
  """Inputs of one sequence; families follow each other over the heads."""
  first, second = jax.random.split(jax.random.key(seed))
  chunks = device_keys.mixture(
    first, heads * (tokens // chunk_size), chunk_size, dim, (BETA, BETA)
  )
  v = jax.random.normal(second, (1, tokens, heads, dim), jnp.bfloat16)

  def by_token(x: jax.Array) -> jax.Array:
    x = x.reshape(heads, tokens, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)[None]

  k = by_token(chunks.keys.astype(jnp.bfloat16))
  return Inputs(k, v, by_token(chunks.log_decay), by_token(chunks.beta))


def limit_ms(inputs: Inputs, copy: Timing) -> float:
  """Milliseconds to read the inputs and write u and w, at the copy's rate."""
  read = sum(x.nbytes for x in inputs)
  written = inputs.v.nbytes + inputs.k.nbytes
  copied = 2 * inputs.k.nbytes
  return copy.median_ms * (read + written) / copied


def truth(
  inputs: Sequence[np.ndarray], chunk_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """u and w of whole chunks in float64, [N, H, C, D] from [1, N C, H, ...]."""

  def split(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)[0]
    return np.swapaxes(x.reshape(-1, chunk_size, *x.shape[1:]), 1, 2)

  k, v, log_decay, beta = map(split, inputs)
  a = key_families.Chunks(k, beta, log_decay).a
  t = key_families.exact_inverse(a) * beta[..., None, :]
  enter = np.exp(np.cumsum(log_decay, axis=-1))
  return t @ v, (t * enter[..., None, :]) @ k


def evaluate(
  inputs: Inputs, u: jax.Array, w: jax.Array, chunk_size: int
) -> dict[str, Any]:
  """Worst relative errors of u and w on a few chunks, entries not finite."""
  chunks = inputs.k.shape[1] // chunk_size
  chosen = np.unique(np.linspace(0, chunks - 1, EVALUATED).astype(int))
  tokens = (chosen[:, None] * chunk_size + np.arange(chunk_size)).reshape(-1)
  index = jnp.asarray(tokens, jnp.int32)

  def few(x: jax.Array) -> np.ndarray:
    return np.asarray(jnp.take(x, index, axis=1), np.float64)

  exact = truth([few(x) for x in inputs], chunk_size)
  worst = []
  for found, right in zip((few(u), few(w)), exact):
    shape = (-1, chunk_size, *found.shape[2:])
    found = np.swapaxes(found[0].reshape(shape), 1, 2)
    finite = np.isfinite(found).all()
    error = np.linalg.norm(found - right, axis=(-1, -2)) if finite else np.inf
    size = np.linalg.norm(right, axis=(-1, -2))
    worst.append(float(np.max(error / size)))
  bad = sum(int(jnp.sum(~jnp.isfinite(x), dtype=jnp.int32)) for x in (u, w))
  return {"error_u": worst[0], "error_w": worst[1], "nonfinite": bad}


def stage_part(
  settings: Any, cases: Sequence[Case], tick: Tick
) -> Iterator[dict[str, Any]]:
  """Times a copy of k, fla's stage and every case, all on the same buffers.

  Beside its times a row has how many times the byte limit's and fla's they
  are, the worst relative Frobenius errors of an evaluated chunk's u and w, and
  the entries of both that are not finite. The limit's own row is the second.
  """
  tick("stage: drawing")
  names = ("tokens", "heads", "dim", "chunk_size")
  shape = {name: getattr(settings, name) for name in names}
  sets = [
    jax.block_until_ready(draw(settings.seed + i, **shape))
    for i in range(timing.INPUT_SETS)
  ]
  evaluated = ("to_limit", "to_fla", "error_u", "error_w", "nonfinite")

  def row(job: Job) -> dict[str, Any]:
    return timing.row(job, shape, evaluated)

  tick("stage: copy")
  copy = settings.measure(jax.jit(jnp.copy), [(x.k,) for x in sets])
  yield row(Job(f"{COPY} of k", "xla", lambda: (copy, {})))
  limit = row(Job(LIMIT, "bytes", lambda: (copy, {})))
  limit |= dict.fromkeys(Timing._fields)  # nothing ran
  limit |= {"median_ms": limit_ms(sets[0], copy), "to_limit": 1.0}
  yield limit
  fla = None
  for job in _jobs(settings, sets, cases):
    tick(f"stage: {job.name}")
    found = row(job)
    fla = found if job.name == FLA else fla
    found["to_limit"] = timing.ratio(found, limit)
    found["to_fla"] = timing.ratio(found, fla)
    yield found


def _jobs(
  settings: Any, sets: list[Inputs], cases: Sequence[Case]
) -> Iterator[Job]:
  """fla's stage, then ours."""
  chunk_size = settings.chunk_size

  def ours(case: Case) -> tuple[Timing, dict[str, Any]]:
    run = jax.jit(
      functools.partial(
        neumann_jax.wy_representation,
        spec=case.spec,
        chunk_size=chunk_size,
        implementation=case.implementation,
      )
    )
    taken, (u, w) = settings.measure(run, sets), run(*sets[0])
    return taken, evaluate(sets[0], u, w, chunk_size)

  def fla() -> tuple[Timing, dict[str, Any]]:
    run = gpu.wy_stage(chunk_size)
    taken, out = gpu.measured(settings.measure, run, sets)
    u, w = map(gpu.returned, out)
    return taken, evaluate(sets[0], u, w, chunk_size)

  yield Job(FLA, "fla", fla, gpu.missing_fla(chunk_size))
  for case in cases:
    yield Job(case.name, case.implementation, functools.partial(ours, case))
