"""Forms that `NFCConfig.fast()` could have, as contenders with knobs.

The first stays free of Jacobians and adds what few levels might gain from: an
average over held levels, noise that is added and taken away alternately, and a
share of the last image after it was moved to the measurement. The others change
the width of the tie: by a spectrum on a torus or mirrored at the borders, wider
where the image has edges, or by the denoiser's Jacobian, whose products count
as evaluations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.fft
import numpy as np
from jax import lax

from experiments.few_calls.contenders import Contender, Restore, scanned
from experiments.few_calls.search import Knob, Point
from posterior_jax import NFCConfig, Observation
from posterior_jax.base import Denoiser, normalised_residual
from posterior_jax.denoising import predictor
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler import (
  Denoise,
  Jacobian,
  Mean,
  Probed,
  Sigma,
  Spectrum,
  compose,
  levels_of,
  parts_of,
  states,
)
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.parts import Parts, Prediction, Probes, Width

# Levels of the longest run: shorter ones pad theirs, so that all share a
# program.
MOST = 20
_SOLVE: dict[str, Any] = {"tolerance": 1e-4, "max_iterations": 300}
# The shipped prior, which the tables are of, has learned pictures so.
ANY_WAY_UP = {"turned": True}
_FEW = NFCConfig.fast(predictor=ANY_WAY_UP)
assert isinstance(_FEW.predictor, Denoise) and isinstance(_FEW.width, Sigma)
_PREDICTOR, _WIDTH = _FEW.predictor, _FEW.width
_LEVELS = (
  Knob("sigma_max", _FEW.schedule.sigma_max, factor=1.5),
  Knob("sigma_min", _FEW.sigma_min, factor=1.5),
)


def _knobs(evaluations: int) -> tuple[Knob, ...]:
  held = _FEW.replace(levels=evaluations).held_levels
  return (
    *_LEVELS,
    Knob("factor", _WIDTH.factor),
    Knob("held", held, None, step=1, low=1, high=evaluations - 1),
    Knob("momentum", _FEW.schedule.momentum, None, step=0.3, high=5.0),
    Knob("discrepancy", _PREDICTOR.discrepancy, None, step=0.25, high=2.0),
    Knob("refined", 0.0, None, step=0.25, high=1.0),
    Knob("renewal", 0.0, None, step=0.25, high=1.0),
  )


def _levels(config: NFCConfig, levels: int, point: Point) -> Level:
  numbers = "sigma_max", "sigma_min", "momentum"
  schedule = {name: point[name] for name in numbers if name in point}
  if "held" in point:
    schedule["held"] = point["held"] / levels
  return levels_of(config.replace(levels=levels, schedule=schedule))


def _operands(evaluations: int, point: Point) -> dict[str, Any]:
  """Of `_plug_and_play`: an entry per level, padded to MOST."""
  found = _levels(_FEW, evaluations, point)
  share, renewal = point["renewal"] ** 2, point["renewal"]
  tied = share * found.sigma**2 + (1 - share) * found.tied**2
  # The same noise comes and goes: what is linear in it leaves the average.
  signs = (-1.0) ** np.arange(evaluations)
  by_level = {
    "sigma": found.sigma,
    "variance": point["factor"] * tied,
    "noise": renewal * signs * found.following,
    "share": found.share,
    "pace": found.pace,
    "way": found.way * float(_PREDICTOR.turned),
  }
  room = (0, MOST - evaluations)
  return {
    "levels": {
      name: np.pad(np.asarray(values, np.float32), room, mode="edge")
      for name, values in by_level.items()
    },
    "first": jax.tree.map(lambda entry: entry[0], found),
    "count": evaluations,
    "discrepancy": point["discrepancy"],
    "refined": point["refined"],
    "factor": point["factor"],
  }


def _plug_and_play(evaluations: int) -> Restore:
  """`fast()` with three more numbers; the same program for every count."""
  del evaluations

  def run(
    operands: dict[str, Any],
    denoise: Denoiser,
    observation: Observation,
    key: jax.Array,
    spectrum: jax.Array,
  ) -> jax.Array:
    start, along = jax.random.split(key)
    config = _FEW.replace(width=Sigma(operands["factor"]))
    shape = (1, len(observation.y), *observation.operator.image_shape)
    x = parts_of(config, spectrum).start(
      start, observation, shape, operands["first"]
    )
    noise = jax.random.normal(along, shape)

    def body(number: jax.Array, carry: tuple) -> tuple:
      x, before, misfit, average, _ = carry
      level = jax.tree.map(lambda entry: entry[number], operands["levels"])
      taken = states.heeded(level["sigma"], misfit, operands["discrepancy"])
      x0 = predictor.clean(predictor.turned(denoise, level["way"]), x, taken)
      misfit = normalised_residual(observation, x0)
      average = average + level["share"] * (x0 - average)
      ahead = x0 + level["pace"] * (x0 - before)
      target = gaussian.Target(observation, ahead, level["variance"])
      z, _ = gaussian.mean(target, **_SOLVE)
      return z + level["noise"] * noise, x0, misfit, average, z

    carry = (x, x, jnp.ones(shape[:2]), jnp.zeros_like(x), x)
    *_, average, z = lax.fori_loop(0, operands["count"], body, carry)
    return (average + operands["refined"] * (z - average))[0]

  return run


# (the parts of a setting, factor, operands, spectrum) -> parts to run with
Change = Callable[[Parts, dict[str, Any], jax.Array], Parts]


def _composed(
  config: NFCConfig,
  each: int,
  *knobs: Knob,
  change: Change = lambda parts, operands, spectrum: parts,
) -> Contender:
  """A setting of `nfc` whose level takes `each` evaluations."""

  def operands(evaluations: int, point: Point) -> dict[str, Any]:
    levels = evaluations // each
    others = {knob.name: point[knob.name] for knob in knobs}
    return {"levels": _levels(config, levels, point)} | others

  def restore(evaluations: int) -> Restore:
    levels = evaluations // each

    def run(
      operands: dict[str, Any],
      denoise: Denoiser,
      observation: Observation,
      key: jax.Array,
      spectrum: jax.Array,
    ) -> jax.Array:
      made = config.replace(levels=levels, width={"factor": operands["factor"]})
      parts = change(parts_of(made, spectrum), operands, spectrum)
      sampler = compose(parts, operands["levels"])
      return scanned(sampler, denoise, observation, key)

    return run

  return Contender(
    lambda evaluations: (*_LEVELS, *knobs), operands, restore, each
  )


def _mirrored(
  parts: Parts, operands: dict[str, Any], spectrum: jax.Array
) -> Parts:
  """The spectrum's width under mirrored borders, wider where edges are."""
  by_products = parts_of(
    NFCConfig(width=Jacobian(), inner=Mean(1e-3, 60))
  ).likelihood

  def width(
    probes: Probes,
    observation: Observation,
    predicted: Prediction,
    level: Level,
  ) -> Width:
    del probes, observation
    power = _on_cosines(spectrum)[..., None]  # [H, W, 1]
    found = operands["factor"] * power / (1 + power / level.tied**2)
    gain = _edges(predicted.x0) ** operands["edges"]
    product = functools.partial(_product, gain, found)
    return Width(product=product)

  return parts._replace(width=width, likelihood=by_products)


def _product(gain: jax.Array, variance: jax.Array, v: jax.Array) -> jax.Array:
  """G T^t V T G v, T the cosine transform: symmetric, positive."""
  axes = -3, -2
  f = jax.scipy.fft.dctn(gain * v, axes=axes, norm="ortho")
  return gain * jax.scipy.fft.idctn(variance * f, axes=axes, norm="ortho")


def _on_cosines(spectrum: jax.Array) -> jax.Array:
  """Power by half cycles per image, [H, W], from that by whole cycles."""
  rows, columns = ((np.arange(n) + 1) // 2 for n in spectrum.shape[:2])
  return spectrum[rows][:, columns]


def _edges(image: jax.Array) -> jax.Array:
  """How much an image varies about every pixel, of root mean square 1."""
  window = (*(1,) * (image.ndim - 3), 5, 5, 1)
  # Pixels of a window that lie in the image.
  rows, columns = (
    np.convolve(np.ones(n), np.ones(5), "same") for n in image.shape[-3:-1]
  )
  count = np.outer(rows, columns)[..., None].astype(np.float32)

  def around(x: jax.Array) -> jax.Array:
    total = lax.reduce_window(x, 0.0, lax.add, window, (1,) * x.ndim, "SAME")
    return total / count

  energy = around(image**2) - around(image) ** 2
  energy = jnp.mean(energy, axis=-1, keepdims=True)  # of all channels
  # Flat places keep a width: nothing is known to be constant.
  energy = jnp.maximum(energy, 1e-4)
  mean = jnp.mean(energy, axis=(-3, -2), keepdims=True)
  return jnp.sqrt(jnp.clip(energy / mean, 0.05, 20.0))


_FACTOR = Knob("factor", 2.0)
_RENEWED = {"renewal": 1.0, "held": 0.6}
PLAIN = "plug and play"
VARIANTS: dict[str, Contender] = {
  PLAIN: Contender(_knobs, _operands, _plug_and_play, shared=True),
  "spectrum": _composed(_FEW.replace(width=Spectrum()), 1, _FACTOR),
  "mirrored spectrum": _composed(
    _FEW,
    1,
    _FACTOR,
    Knob("edges", 0.0, factor=None, step=0.25, low=0.0, high=1.0),
    change=_mirrored,
  ),
  "probed": _composed(_FEW.replace(width=Probed()), 2, _FACTOR),
  "Jacobian": _composed(
    _FEW.replace(width=Jacobian(), inner=Mean(1e-3, 1)), 2, _FACTOR
  ),
  "Jacobian, noise renewed": _composed(
    _FEW.replace(width=Jacobian(), inner=Mean(1e-3, 2), schedule=_RENEWED),
    3,
    _FACTOR,
  ),
}
