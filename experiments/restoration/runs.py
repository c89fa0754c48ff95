"""Restoring photographs with one sampler at a time, and judging the result.

A `Program` is compiled once and used for all its cases: kernels, masks,
measurements and noise levels are arguments. Several programs compile at a
time, on the host; a device runs one at a time.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

import posterior_jax
from experiments.data import degradations
from experiments.data.degradations import Case
from experiments.harness import samplers, timing
from experiments.restoration.rows import Row, judge
from posterior_jax import Observation, metrics, operators
from posterior_jax.base import Denoiser

AS_MEASURED = ""
HALF_NOISE, TWICE_NOISE = "half the noise", "twice the noise"
TURNED = {f"kernel turned by {degrees} degrees": degrees for degrees in (5, 15)}
ASSUMPTIONS = (AS_MEASURED, HALF_NOISE, TWICE_NOISE, *TURNED)


class Program(NamedTuple):
  """One sampler for one task.

  Attributes:
    part: of the study it belongs to.
    method: a key of `samplers.METHODS`.
    setting: of the method.
    cases: of one task, restored one after the other.
    evaluations: denoiser calls it may spend; 0: as the setting does.
    variant: names the changes, "" without any.
    changes: of the setting's fields, (name, value) each.
    assumed: what the sampler believes, of ASSUMPTIONS.
    samples: drawn of every observation.
  """

  part: str
  method: str
  setting: str
  cases: tuple[Case, ...]
  evaluations: int = 0
  variant: str = ""
  changes: tuple[tuple[str, Any], ...] = ()
  assumed: tuple[str, ...] = (AS_MEASURED,)
  samples: int = 1

  def __str__(self) -> str:
    words = (self.cases[0].task, self.method, self.setting, self.variant)
    return f"{self.part}: {' '.join(filter(None, words))}, {self.evaluations}"


# given the samples [m, H, W, 3] of a case's first photograph
Keep = Callable[[Program, Case, np.ndarray], None]


class Setup(NamedTuple):
  """What all programs of a study share.

  Attributes:
    names: of the photographs.
    truth: they, [N, H, W, 3].
    denoise: of the prior.
    spectrum: the prior's, [H, W].
    noise_std: of the measurements.
    seed: of noise and samplers.
    lpips: the distance with weights of one's own, if given.
  """

  names: tuple[str, ...]
  truth: jax.Array
  denoise: Denoiser
  spectrum: jax.Array
  noise_std: float
  seed: int
  lpips: metrics.LPIPS | None = None


def run_all(
  programs: Sequence[Program],
  setup: Setup,
  *,
  workers: int,
  keep: Keep | None = None,
  tick: Callable[[str], None] = lambda words: None,
) -> Iterator[list[Row]]:
  """Runs programs on all devices, `workers` compiling at a time.

  Args:
    programs: to run.
    setup: what they share.
    workers: threads; no more devices are used than there are.
    keep: takes samples to be shown.
    tick: called before each program, from several threads.

  Yields:
    The rows of one program after the other, as they are done; of one that
    failed rows with a note.
  """
  places = [
    _Place(device, _placed(setup, device), threading.Lock())
    for device in jax.local_devices()[:workers]
  ]

  def one(number: int, program: Program) -> list[Row]:
    place = places[number % len(places)]
    tick(str(program))
    with jax.default_device(place.device):
      found, note = timing.attempt(lambda: run(program, place, keep))
    return _failed(program, setup, note) if found is None else found

  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    futures = [pool.submit(one, i, p) for i, p in enumerate(programs)]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


class _Place(NamedTuple):
  """A device, the study's arrays on it, and who may use it now."""

  device: jax.Device
  setup: Setup
  lock: threading.Lock


def _placed(setup: Setup, device: jax.Device) -> Setup:
  names = ("truth", "denoise", "spectrum", "lpips")
  arrays = {name: getattr(setup, name) for name in names}
  return setup._replace(**jax.device_put(arrays, device))


def run(program: Program, place: _Place, keep: Keep | None) -> list[Row]:
  """Compiles a program and restores its cases; a row for every photograph."""
  setup = place.setup
  config = samplers.config(
    program.method,
    program.setting,
    task=program.cases[0].task,
    evaluations=program.evaluations or None,
    **dict(program.changes),
  )
  sampler = samplers.build(program.method, config, spectrum=setup.spectrum)

  def draw(
    denoise: Denoiser, observation: Observation, key: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    samples, info = posterior_jax.run(
      sampler, denoise, observation, key, num_samples=program.samples
    )
    return samples, jnp.sum(info.calls), jnp.sum(info.products)

  key = jax.random.key(setup.seed)
  compiled, compile_seconds, rows = None, 0.0, []
  for case, assumed in itertools.product(program.cases, program.assumed):
    problem = degradations.measure(
      case, setup.truth, setup.noise_std, setup.seed
    )
    believed = assume(problem.observation, assumed)
    arguments = (setup.denoise, believed, key)
    if compiled is None:
      start = time.monotonic()
      compiled = jax.jit(draw).lower(*arguments).compile()
      compile_seconds = time.monotonic() - start
    with place.lock:
      start = time.monotonic()
      found = jax.block_until_ready(compiled(*arguments))
      seconds = time.monotonic() - start
    if keep is not None and assumed == AS_MEASURED:
      keep(program, case, np.asarray(found[0][:, 0]))
    about = _about(program, case, assumed) | {
      "calls": int(found[1]),
      "products": int(found[2]),
      "seconds": seconds,
      "compile_seconds": compile_seconds,
    }
    judged = judge(found[0], problem, setup.lpips)
    rows += [
      Row(**(about | {"photograph": name} | numbers))
      for name, numbers in zip(setup.names, judged)
    ]
  return rows


def assume(observation: Observation, assumed: str) -> Observation:
  """The observation as a sampler believes it to be.

  Args:
    observation: as it is.
    assumed: one of ASSUMPTIONS; the kernel is turned about its middle.

  Returns:
    The same y under another noise level or kernel.
  """
  if assumed in (HALF_NOISE, TWICE_NOISE):
    factor = 0.5 if assumed == HALF_NOISE else 2.0
    return dataclasses.replace(
      observation, noise_std=factor * observation.noise_std
    )
  if assumed in TURNED:
    operator = observation.operator
    assert isinstance(operator, operators.Blur)
    kernel = scipy.ndimage.rotate(
      np.asarray(operator.kernel), TURNED[assumed], reshape=False, order=1
    )
    kernel = jnp.asarray(kernel / kernel.sum(), jnp.float32)
    return dataclasses.replace(
      observation, operator=dataclasses.replace(operator, kernel=kernel)
    )
  return observation


def _about(program: Program, case: Case, assumed: str) -> dict[str, Any]:
  return {
    "part": program.part,
    "task": case.task,
    "kernel": case.kernel,
    "assumed": assumed,
    "method": program.method,
    "setting": program.setting,
    "variant": program.variant,
    "budget": program.evaluations,
    "samples": program.samples,
  }


def _failed(program: Program, setup: Setup, note: str) -> list[Row]:
  return [
    Row(**_about(program, case, assumed), photograph=name, note=note)
    for case, assumed in itertools.product(program.cases, program.assumed)
    for name in setup.names
  ]


def remaining(
  programs: Sequence[Program], rows: Sequence[Mapping[str, Any]], count: int
) -> list[Program]:
  """The programs that a table lacks: those without all rows of all cases.

  Args:
    programs: wanted.
    rows: of the table so far.
    count: photographs, a row each.

  Returns:
    Those to run.
  """
  fields = (
    list(_about(programs[0], programs[0].cases[0], "")) if programs else []
  )
  there = collections.Counter(
    tuple(row[field] for field in fields) for row in rows
  )
  return [
    program
    for program in programs
    if any(
      there[tuple(_about(program, case, assumed).values())] < count
      for case, assumed in itertools.product(program.cases, program.assumed)
    )
  ]
