"""A sampler that draws the kernel of a blur anew after every level."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from posterior_jax.base import Denoiser, Info, Observation, Sampler, State
from posterior_jax.denoising import predictor
from posterior_jax.linalg import fourier
from posterior_jax.operators.function import as_pytree
from posterior_jax.uncertain.family import Kernels
from posterior_jax.uncertain.likelihood import (
  blur_of,
  log_likelihood,
  with_kernel,
)


class UncertainState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, 1, H, W, C], as of the sampler.
    level: likewise.
    inner: its states, one for every sample: leading axis [B].
    choice: [B], int32, the kernel of each sample.
  """

  x: jax.Array
  level: jax.Array
  inner: State
  choice: jax.Array


def uncertain(
  sampler: Sampler, family: Kernels, *, spectrum: jax.Array
) -> Sampler:
  """A sampler that draws the kernel of a blur with the picture.

  Args:
    sampler: any that takes blurs; it works on one sample at a time, and a
      denoiser call a step comes on top. What `recorded` keeps stays.
    family: the kernels; the observation's operator is a blur, of a border
      beyond the picture or not, whose kernel has their size.
    spectrum: the prior's, on the grid of the measurement, [h, w], > 0.

  Returns:
    The sampler, of one observation at a time: N = 1, since every photograph has
    a kernel of its own. `info.choice` of `run` is [K, B], the family's number
    of the kernel after every step.

  Raises:
    TypeError: if one of the two is not what it should be.
    ValueError: for a spectrum that is none; in a run, for several observations.
  """
  if not isinstance(sampler, Sampler) or not isinstance(family, Kernels):
    raise TypeError(
      f"sampler and family must be a Sampler and Kernels, got "
      f"{type(sampler).__name__} and {type(family).__name__}"
    )
  spectrum = jnp.asarray(spectrum, jnp.float32)
  fourier.check_spectrum(spectrum)
  known = _Known(
    as_pytree(sampler.init), as_pytree(sampler.step), family, spectrum
  )
  # Operands of a program, and no closures: equal ones do not compile again.
  init, step = (jax.tree_util.Partial(f, known) for f in (_init, _step))
  return Sampler(init, step, sampler.num_steps)


class _Known(NamedTuple):
  """What `uncertain` is given, as a pytree."""

  init: Callable[..., State]
  step: Callable[..., tuple[State, Info]]
  family: Kernels
  spectrum: jax.Array

  def by(self, observation: Observation, choice: jax.Array) -> Observation:
    """The observation by a kernel of the family."""
    operator = blur_of(observation, self.family)
    operator = with_kernel(operator, self.family.values[choice])
    return dataclasses.replace(observation, operator=operator)


def _init(
  known: _Known, key: chex.PRNGKey, observation: Observation, batch: int
) -> UncertainState:
  blur_of(observation, known.family)
  if len(observation.y) != 1:
    raise ValueError(
      f"y must hold one observation where its kernel is drawn, got N = "
      f"{len(observation.y)}; give each a run of its own"
    )
  key_choice, key_inner = jax.random.split(key)
  # Before anything is predicted: a flat image of the measurement's colour.
  shape = (1, *observation.operator.image_shape)
  flat = jnp.broadcast_to(
    jnp.mean(observation.y, axis=(-3, -2), keepdims=True), shape
  )
  likely = log_likelihood(observation, known.family, flat, known.spectrum)
  choice = jax.random.categorical(key_choice, likely, shape=(batch,))
  inner: Any = jax.vmap(
    lambda key, choice: known.init(key, known.by(observation, choice), 1)
  )(jax.random.split(key_inner, batch), choice)
  return UncertainState(inner.x[:, 0], inner.level[0], inner, choice)


def _step(
  known: _Known,
  state: UncertainState,
  denoise: Denoiser,
  observation: Observation,
  key: chex.PRNGKey,
) -> tuple[UncertainState, Info]:
  def one(inner: Any, choice: jax.Array, key: chex.PRNGKey) -> tuple:
    key_step, key_choice = jax.random.split(key)
    found, info = known.step(
      inner, denoise, known.by(observation, choice), key_step
    )
    sigma, spectrum = info.sigma, known.spectrum
    centre = predictor.clean(denoise, inner.x, sigma)[0]
    variance = spectrum * sigma**2 / (spectrum + sigma**2)
    likely = log_likelihood(observation, known.family, centre, variance)
    return found, info, jax.random.categorical(key_choice, likely)

  keys = jax.random.split(key, len(state.choice))
  inner, info, choice = jax.vmap(one)(state.inner, state.choice, keys)
  merged = Info(
    info.sigma[0],
    info.residual[:, 0],
    jax.tree.map(jnp.max, info.solve),
    None if info.band_energy is None else info.band_energy[:, 0],
    calls=jnp.max(info.calls) + 1,
    products=jnp.max(info.products),
    trajectory=None if info.trajectory is None else info.trajectory[:, 0],
    choice=choice,
  )
  following = UncertainState(inner.x[:, 0], inner.level[0], inner, choice)
  return following, merged
