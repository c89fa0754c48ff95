"""Settings of `nfc` as methods: the schedule's knobs make the levels.

One program serves all points: levels are operands, as many as a budget has.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.few_calls.contenders import Contender, sampled
from experiments.few_calls.search import Knob, Point
from posterior_jax import NFCConfig, Observation
from posterior_jax.base import Denoiser, Info, Sampler, SamplerState
from posterior_jax.nfc_sampler import compose, levels_of, parts_of, tuned

_SHORTEST = 5  # levels of a pass


def nfc(config: Callable[[int], NFCConfig], *knobs: Knob) -> Contender:
  """Settings of `nfc`: knobs of `tuned.WIDTH` are the width's.

  The others are the schedule's, whose numbers make the levels, which are
  operands.
  """

  def operands(evaluations: int, point: Point) -> dict[str, Any]:
    made = config(evaluations)
    own = levels_of(tuned.with_point(made, point))
    count = len(own.sigma)
    room = (0, made.levels - count)
    levels = jax.tree.map(lambda v: jnp.pad(v, room, mode="edge"), own)
    beside = {n: point[n] for n in (*tuned.WIDTH, "renewal") if n in point}
    return {"levels": levels, "count": count, **beside}

  def build(made: NFCConfig, operands: Any, spectrum: jax.Array) -> Sampler:
    beside = {n: v for n, v in operands.items() if n not in ("levels", "count")}
    parts = parts_of(tuned.with_point(made, beside), spectrum)
    return _stopping(compose(parts, operands["levels"]), operands["count"])

  return sampled(build, config, operands, *knobs)


def in_passes(config: Callable[[int], NFCConfig], *knobs: Knob) -> Contender:
  """`nfc` that may go through fewer levels several times."""

  def with_passes(evaluations: int) -> tuple[Knob, ...]:
    levels = config(evaluations).levels
    most = 2 ** int(np.log2(levels / _SHORTEST))
    return *knobs, Knob("passes", min(2, most), low=1, high=most, whole=True)

  return nfc(config, *knobs)._replace(knobs=with_passes)


def _stopping(sampler: Sampler, count: jax.Array) -> Sampler:
  """A sampler that is done after `count` levels, whatever comes behind.

  Passes that do not share all levels evenly leave a few: one program serves
  every number of them.
  """

  def step(
    state: SamplerState,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
  ) -> tuple[SamplerState, Info]:
    after, info = sampler.step(state, denoise, observation, key)
    # Operands of a program are float32.
    done = state.level >= jnp.asarray(count, jnp.int32)
    return jax.tree.map(functools.partial(jnp.where, done), state, after), info

  return sampler._replace(step=step)
