"""The baselines at few network evaluations: their knobs, and how they run.

A call of the network and a product with its Jacobian (VJP) are one evaluation
each. Knobs are operands of a program, so that a search compiles it once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from experiments.few_calls.search import Knob, Point
from experiments.peers.dpir import dpir
from posterior_jax import Observation, Sampler, baselines
from posterior_jax.base import Denoiser, Operator

# (operands, denoise, observation, key, spectrum) -> images [N, H, W, C]
Restore = Callable[
  [Any, Denoiser, Observation, jax.Array, jax.Array], jax.Array
]


class Contender(NamedTuple):
  """A method at any number of network evaluations.

  Attributes:
    knobs: evaluations -> what is tuned.
    operands: (evaluations, point) -> arrays and numbers of its program.
    restore: evaluations -> the program.
    each: network evaluations of a level; fewer are no run.
    shared: whether one program serves every number of evaluations.
  """

  knobs: Callable[[int], tuple[Knob, ...]]
  operands: Callable[[int, Point], Any]
  restore: Callable[[int], Restore]
  each: int = 1
  shared: bool = False


def has_form(method: str, operator: Operator) -> bool:
  """Whether a method has a form for the operator: DDRM needs an SVD."""
  try:
    if method == "DDRM":
      operator.svd()  # type: ignore[attr-defined]
  except ValueError:
    return False
  return True


def scanned(
  sampler: Sampler, denoise: Denoiser, observation: Observation, key: jax.Array
) -> jax.Array:
  """One sample [N, H, W, C], as `posterior_jax.run` draws it.

  `run` compiles, so it needs settings that are numbers; here they are traced.
  """
  first, rest = jax.random.split(key)
  state = sampler.init(first, observation, 1)

  def body(state: Any, key: jax.Array) -> tuple[Any, None]:
    return sampler.step(state, denoise, observation, key)[0], None

  keys = jax.random.split(rest, sampler.num_steps)
  return lax.scan(body, state, keys)[0].x[0]


def built(
  build: Callable[[Any], Sampler],
  config: Callable[[int], Any],
  *knobs: Knob,
  each: int = 1,
) -> Contender:
  """A baseline of `posterior_jax`, from its config at a number of evaluations.

  Args:
    build: a config to its sampler.
    config: evaluations -> the config, whose fields of the knobs' names change.
    *knobs: what is tuned.
    each: as of `Contender`.
  """
  return sampled(
    lambda made, numbers, _: build(dataclasses.replace(made, **numbers)),
    config,
    lambda _, point: dict(point),
    *knobs,
    each=each,
  )


def sampled(
  build: Callable[[Any, Any, jax.Array], Sampler],
  config: Callable[[int], Any],
  operands: Callable[[int, Point], Any],
  *knobs: Knob,
  each: int = 1,
) -> Contender:
  """A sampler of a config at a number of evaluations and of what is traced.

  Args:
    build: a config, operands and the prior's spectrum to the sampler.
    config: evaluations -> the config.
    operands: evaluations and a point -> what of it the program takes.
    *knobs: what is tuned.
    each: as of `Contender`.
  """

  def restore(evaluations: int) -> Restore:
    made = config(evaluations)

    def run(
      numbers: Any,
      denoise: Denoiser,
      observation: Observation,
      key: jax.Array,
      spectrum: jax.Array,
    ) -> jax.Array:
      sampler = build(made, numbers, spectrum)
      return scanned(sampler, denoise, observation, key)

    return run

  return Contender(lambda _: knobs, operands, restore, each)


def _baseline(
  build: Callable[[Any], Sampler], config: Any, each: int, *knobs: Knob
) -> Contender:
  """One whose level takes `each` evaluations."""

  def with_levels(evaluations: int) -> Any:
    return dataclasses.replace(config, levels=evaluations // each)

  return built(build, with_levels, *knobs, each=each)


def plug_and_play(evaluations: int, *, turned: bool = False) -> Restore:
  """DPIR, as it is or turned from level to level."""

  def run(
    numbers: Point,
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
    spectrum: jax.Array,
  ) -> jax.Array:
    del key, spectrum
    return dpir(
      denoise, observation, calls=evaluations, turned=turned, **numbers
    )

  return run


def share(name: str, start: float) -> Knob:
  """A knob between 0 and 1, both among its values."""
  return Knob(name, start, factor=None, step=0.2, low=0.0, high=1.0)


DPIR = "DPIR"
# Left out: DAPS, SITCOM and PnP-DM take several evaluations per level, so that
# five of them are one level or two; FGPS is DPS behind a band. AdamDPS and
# FAST-DIPS are tuned from 20 evaluations on, in `equal_tuning`.
BASELINES: dict[str, Contender] = {
  DPIR: Contender(
    lambda evaluations: (Knob("weight", 0.2), Knob("first", 98 / 255)),
    lambda _, point: dict(point),
    plug_and_play,
  ),
  "DiffPIR": _baseline(
    baselines.diffpir,
    baselines.DiffPIRConfig.tuned(),
    1,
    Knob("weight", 0.5),
    share("renewal", 0.6),
  ),
  "DDNM+": _baseline(
    baselines.ddnm,
    baselines.DDNMConfig.tuned(),
    1,
    share("eta", 0.8),
    Knob("threshold", 0.03, high=1.0),
  ),
  "DDRM": _baseline(
    baselines.ddrm,
    baselines.DDRMConfig.tuned(),
    1,
    share("eta", 0.8),
    share("eta_data", 1.0),
  ),
  "RED-diff": _baseline(
    baselines.reddiff,
    baselines.REDDiffConfig.tuned(),
    1,
    Knob("weight", 0.25),
    Knob("learning_rate", 0.05),
  ),
  "PiGDM": _baseline(
    baselines.pigdm,
    baselines.PiGDMConfig.tuned(),
    2,
    share("eta", 0.8),
    Knob("data_std", 0.12),
  ),
  "MMPS": _baseline(
    baselines.mmps, baselines.MMPSConfig.tuned(), 2, share("eta", 0.8)
  ),
  "DPS": _baseline(
    baselines.dps, baselines.DPSConfig.tuned(), 2, Knob("scale", 3.0)
  ),
}
