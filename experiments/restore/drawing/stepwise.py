"""One image or sample, step by step, and how long the rest will take."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.harness.progress import Tick
from experiments.restore.job import Job


class Drawn(NamedTuple):
  """An image [H, W, C] of the scene, and what it took."""

  image: np.ndarray  # pixels in [-1, 1]
  calls: int  # of the denoiser
  products: int  # with its Jacobian
  # turn of its kernel, mean over the last half of the steps; NaN: it is known
  degrees: float = float("nan")


class Pace:
  """Seconds that are left, from those that steps took.

  A step's time goes with its network evaluations, and NFC's image takes more of
  them a step than its samples do: what is left is counted in evaluations, and
  only what ran compiled is timed.
  """

  def __init__(self, evaluations: float):
    """Of so many evaluations in all, as far as is known before the first."""
    self.left = evaluations
    self._seconds = 0.0
    self._done = 0

  def took(self, seconds: float, evaluations: int, expected: float) -> None:
    """A step ended that was expected to take so many evaluations."""
    self._seconds += seconds
    self._done += evaluations
    self.left -= expected

  @property
  def seconds(self) -> float | None:
    """Expected; None before the first step ends."""
    if not self._done:
      return None
    return self.left * self._seconds / self._done


# What a sampler is made of are operands: pictures of one size and of equal
# settings share these two programs, where a jit of each sampler would not.
@functools.partial(jax.jit, static_argnums=3)
def started(
  init: Callable[..., Any], key: jax.Array, observation: Any, batch: int
) -> Any:
  """A sampler's first state."""
  return init(key, observation, batch)


@jax.jit
def stepped(step: Callable[..., Any], *operands: Any) -> Any:
  """A sampler's step: (state, denoise, observation, key)."""
  return step(*operands)


def draw(
  job: Job,
  sampler: posterior_jax.Sampler,
  label: str,
  tick: Tick,
  pace: Pace | None = None,
) -> Callable[[jax.Array], Drawn]:
  """From a key to the sample of `posterior_jax.run`; its steps are shown."""
  given = job.given.coloured()
  noise_std = jnp.asarray(given.noise_std, jnp.float32)
  observation = dataclasses.replace(given, noise_std=noise_std)
  expected = job.evaluations(sampler)  # a step
  compiled = False

  def one(key: jax.Array) -> Drawn:
    calls = products = 0
    choices = []
    nonlocal compiled
    key_init, key_steps = jax.random.split(key)
    job.common.heartbeat.show(f"{label}, compiling and start")
    # A start from the measurement is a solve of its own. Programs are
    # dispatched and not waited for, so that the first step would count it.
    state = jax.block_until_ready(
      started(sampler.init, key_init, observation, 1)
    )
    for key in jax.random.split(key_steps, sampler.num_steps):
      words = label if pace is None else f"{label}{_words(pace.seconds)}"
      tick(words)
      job.common.heartbeat.begin(words, expected)
      if not compiled:
        # Apart from the first step, whose time is to tell what is left.
        stepped.lower(
          sampler.step, state, job.denoise, observation, key
        ).compile()
        compiled = True
      start = time.monotonic()
      state, info = stepped(sampler.step, state, job.denoise, observation, key)
      spent = int(info.calls), int(info.products)
      if pace is not None:
        pace.took(time.monotonic() - start, sum(spent), expected)
      calls, products = calls + spent[0], products + spent[1]
      if info.choice is not None:
        choices.append(int(info.choice[0]))
    image = np.asarray(state.x[0, 0])
    if job.given.grey:
      image = image.mean(-1, keepdims=True)
    if job.common.family is None:
      return Drawn(image, calls, products)
    turns = np.asarray(job.common.family.degrees)[choices[len(choices) // 2 :]]
    return Drawn(image, calls, products, float(turns.mean()))

  return one


def _words(seconds: float | None) -> str:
  if seconds is None:
    return ", compiling and first step"
  if seconds < 90:
    return f", {seconds:.0f} s left"
  return f", {seconds / 60:.0f} min left"
