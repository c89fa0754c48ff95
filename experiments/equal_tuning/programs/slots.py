"""A program that restores many pictures at once, each by numbers of its own.

Slots hold a measurement, a key and a point of the knobs: six points for eight
pictures while a method is tuned, one point for all pictures in the end. Both
take the same program, since the number of slots is the same.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax as pj
from experiments.data import degradations
from experiments.data.degradations import Degradation
from experiments.few_calls.contenders import Contender
from experiments.few_calls.search import Point
from posterior_jax.base import Denoiser

SAMPLERS = 10**6  # their key of a seed, beyond the numbers of degradations


class Measured(NamedTuple):
  """Pictures seen through one operator."""

  truth: jax.Array  # [N, H, W, 3]
  y: jax.Array  # [N, h, w, 3]
  operator: pj.Operator
  noise_std: float


def measured(
  degradation: Degradation, truth: np.ndarray, noise_std: float, seed: int
) -> Measured:
  """Pictures with frozen noise."""
  problem = degradations.measure(
    degradation, jnp.asarray(truth), noise_std, seed
  )
  observation = problem.observation
  return Measured(problem.truth, observation.y, observation.operator, noise_std)


class Slot(NamedTuple):
  """What one slot restores, and how."""

  point: Point
  picture: int
  chain: int = 0  # of several samples


class Program:
  """A method at a number of evaluations, compiled for one operator's kind."""

  def __init__(
    self,
    contender: Contender,
    evaluations: int,
    size: int,
    denoise: Denoiser,
    spectrum: jax.Array,
    seed: int,
  ):
    """Nothing is compiled yet.

    Args:
      contender: the method.
      evaluations: of the network for each image.
      size: how many slots.
      denoise: of the prior.
      spectrum: of the prior, [H, W].
      seed: of the sampler's noise, which is each picture's own and the same for
        all points.
    """
    self._contender, self._evaluations = contender, evaluations
    # Measurements' noise has keys of the seed as it is. The committed rows were
    # made before: a picture's noise and its sampler could share one.
    self._size = size
    self._key = jax.random.fold_in(jax.random.key(seed), SAMPLERS)
    self._rest = denoise, spectrum
    self._run = jax.jit(
      functools.partial(_restored, contender.restore(evaluations))
    )
    self._made: Any = None

  def compile(self, point: Point, pictures: Measured) -> None:
    """Compiles, with any point and pictures of the shape."""
    slots = [Slot(point, 0)]
    arguments = self._arguments(slots, pictures)
    self._made = self._run.lower(*arguments).compile()

  def takes(self, point: Point) -> bool:
    """Whether a point is a setting: no first noise below the last one."""
    try:
      self._contender.operands(self._evaluations, point)
    except ValueError:
      return False
    return True

  def __call__(self, slots: Sequence[Slot], pictures: Measured) -> jax.Array:
    """Restored images of slots, as many as there are: [S, H, W, 3]."""
    parts = [
      self._made(*self._arguments(slots[first : first + self._size], pictures))
      for first in range(0, len(slots), self._size)
    ]
    return jnp.concatenate(parts)[: len(slots)]

  def _arguments(self, slots: Sequence[Slot], pictures: Measured) -> tuple:
    # Slots that are left over restore the last picture again.
    slots = [*slots, *[slots[-1]] * (self._size - len(slots))]
    made = {
      id(slot.point): self._contender.operands(self._evaluations, slot.point)
      for slot in {id(slot.point): slot for slot in slots}.values()
    }
    operands = [made[id(slot.point)] for slot in slots]
    which = np.array([slot.picture for slot in slots])
    keys = jax.vmap(functools.partial(jax.random.fold_in, self._key))(
      np.array([1000 * slot.chain + slot.picture for slot in slots])
    )
    return (
      jax.tree.map(lambda *v: np.stack(v).astype(np.float32), *operands),
      self._rest[0],
      pictures.y[which],
      pictures.operator,
      np.float32(pictures.noise_std),
      keys,
      self._rest[1],
    )


@jax.jit
def _called(denoise: Denoiser, x: jax.Array, sigma: jax.Array) -> jax.Array:
  return denoise(x, sigma)


def _restored(
  restore: Any,
  operands: Any,
  denoise: Denoiser,
  y: jax.Array,
  operator: pj.Operator,
  noise_std: jax.Array,
  keys: jax.Array,
  spectrum: jax.Array,
) -> jax.Array:
  # Behind `jit` the network is traced once for all methods.
  traced_once = jax.tree_util.Partial(_called, denoise)

  def one(operands: Any, y: jax.Array, key: jax.Array) -> jax.Array:
    observation = pj.Observation(y[None], operator, noise_std)
    return restore(operands, traced_once, observation, key, spectrum)[0]

  return jax.vmap(one)(operands, y, keys)


@jax.jit
def scores(
  x: jax.Array, truth: jax.Array, lpips: pj.metrics.LPIPS | None
) -> tuple[jax.Array, jax.Array]:
  """PSNR and LPIPS of every image, [S] each; without weights NaN for LPIPS."""
  psnr = pj.metrics.psnr(x, truth)
  # A run that diverged is no image: it must not spoil the others' features.
  finite = jnp.isfinite(x).all(axis=(1, 2, 3))
  x = jnp.where(finite[:, None, None, None], x, 0.0)
  if lpips is None:
    return psnr, jnp.full_like(psnr, jnp.nan)
  return psnr, jnp.where(finite, lpips(x, truth), jnp.nan)
