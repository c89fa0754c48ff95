"""The stage k, v, log_decay, beta -> u, w of the speed study, beside fla's."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import device_keys, key_families
from experiments.harness import timing as gpu_timing
from experiments.harness.progress import Tick
from experiments.harness.timing import Job, Timing
from experiments.inverse_speed.cases import Case
from experiments.inverse_speed.inverse_part import COPY, device_name
from experiments.peers import gpu

FLA = "fla"
LIMIT = "byte limit"
BETA = (0.6, 1.0)
JUDGED = 8  # chunks compared with float64, spread evenly over the sequence


class StageRow(NamedTuple):
  """One implementation of the stage, the copy or the byte limit.

  Attributes:
    name: of the case.
    implementation: "gpu", "xla" or "fla"; "bytes" for the limit.
    tokens: T.
    heads: of keys and of values.
    dim: width of keys and of values.
    chunk_size: C.
    device: that ran it.
    median_ms: milliseconds a call, over the repeats.
    lowest_ms: the fastest.
    highest_ms: the slowest.
    calls: back-to-back calls in a measurement.
    first_s: seconds of the first call, compilation included.
    to_limit: times as long as reading and writing every byte once.
    to_fla: times as long as fla's.
    error_u: worst relative Frobenius error of a judged chunk's u.
    error_w: the same of w.
    nonfinite: entries of u and w that are not finite.
    note: why something is missing.
  """

  name: str
  implementation: str
  tokens: int
  heads: int
  dim: int
  chunk_size: int
  device: str
  median_ms: float | None
  lowest_ms: float | None
  highest_ms: float | None
  calls: int | None
  first_s: float | None
  to_limit: float | None
  to_fla: float | None
  error_u: float | None
  error_w: float | None
  nonfinite: int | None
  note: str


class Inputs(NamedTuple):
  """What the stage reads.

  Attributes:
    k: [1, T, H, D] bfloat16, unit keys of all families.
    v: [1, T, H, D] bfloat16.
    log_decay: [1, T, H] float32.
    beta: [1, T, H] float32.
  """

  k: jax.Array
  v: jax.Array
  log_decay: jax.Array
  beta: jax.Array


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


def judge(
  inputs: Inputs, u: jax.Array, w: jax.Array, chunk_size: int
) -> dict[str, Any]:
  """Worst relative errors of u and w on a few chunks, entries not finite."""
  chunks = inputs.k.shape[1] // chunk_size
  chosen = np.unique(np.linspace(0, chunks - 1, JUDGED).astype(int))
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
) -> Iterator[StageRow]:
  """Times a copy, fla's stage and every case on the same buffers.

  Args:
    settings: of `experiments.inverse_speed`.
    cases: specs of the inverse inside the stage.
    tick: called before each.

  Yields:
    One row each: the copy of k, the byte limit, fla, the cases.
  """
  tick("stage: drawing")
  shape = _shape(settings)
  sets = [
    jax.block_until_ready(draw(settings.seed + i, **shape))
    for i in range(gpu_timing.INPUT_SETS)
  ]
  time = functools.partial(
    gpu_timing.measure, repeats=settings.repeats, inner=settings.inner
  )
  tick("stage: copy")
  copy = time(jax.jit(jnp.copy), [(x.k,) for x in sets])
  limit = limit_ms(sets[0], copy)
  yield _row(settings, f"{COPY} of k", "xla", **gpu_timing.columns(copy))
  yield _row(settings, LIMIT, "bytes", median_ms=limit, to_limit=1.0)
  rival: Timing | None = None
  for job in _jobs(sets, cases, settings.chunk_size, time):
    tick(f"stage: {job.name}")
    timing, judged, note = gpu_timing.run(job)
    rival = timing if job.name == FLA else rival
    yield _row(
      settings,
      job.name,
      job.implementation,
      to_limit=None if timing is None else timing.median_ms / limit,
      to_fla=gpu_timing.ratio(timing, rival),
      note=note,
      **gpu_timing.columns(timing),
      **judged,
    )


def _shape(settings: Any) -> dict[str, int]:
  names = ("tokens", "heads", "dim", "chunk_size")
  return {name: getattr(settings, name) for name in names}


def _row(
  settings: Any, name: str, implementation: str, **columns: Any
) -> StageRow:
  """A row with None in every column that is not given."""
  known: dict[str, Any] = dict.fromkeys(StageRow._fields)
  known |= _shape(settings) | {"device": device_name(), "note": ""} | columns
  known |= {"name": name, "implementation": implementation}
  return StageRow(**known)


def _jobs(
  sets: list[Inputs],
  cases: Sequence[Case],
  chunk_size: int,
  time: Callable[..., Timing],
) -> list[Job]:
  """fla's stage, then ours."""
  no_fla = gpu.missing_fla(chunk_size)
  rival = functools.partial(_fla, sets, chunk_size, time)
  return [Job(FLA, "fla", rival, no_fla)] + [
    Job(
      case.name,
      case.implementation,
      functools.partial(_ours, sets, case, chunk_size, time),
    )
    for case in cases
  ]


def _ours(
  sets: list[Inputs],
  case: Case,
  chunk_size: int,
  time: Callable[..., Timing],
) -> tuple[Timing, dict[str, Any]]:
  @jax.jit
  def run(
    k: jax.Array, v: jax.Array, log_decay: jax.Array, beta: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return neumann_jax.wy_representation(
      k,
      v,
      log_decay,
      beta,
      spec=case.spec,
      chunk_size=chunk_size,
      implementation=case.implementation,
    )

  timing = time(run, sets)
  u, w = run(*sets[0])
  return timing, judge(sets[0], u, w, chunk_size)


def _fla(
  sets: list[Inputs], chunk_size: int, time: Callable[..., Timing]
) -> tuple[Timing, dict[str, Any]]:
  inputs = [tuple(map(gpu.shared, x)) for x in sets]
  run = gpu.wy_stage(chunk_size)
  timing = time(run, inputs, wait=gpu.wait)
  u, w = map(gpu.returned, run(*inputs[0]))
  return timing, judge(sets[0], u, w, chunk_size)
