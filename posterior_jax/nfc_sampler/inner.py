"""The inner method that the settings name: how a prediction is moved."""

from collections.abc import Callable
from typing import Any

import chex
import jax

from posterior_jax.base import Observation, SolveInfo
from posterior_jax.likelihood import covariance, gaussian
from posterior_jax.nfc_sampler.config import NFCConfig
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.parts import Refined, Width
from posterior_jax.nfc_sampler.records import Exact, Gradient, Jacobian, Mean

# Products for the square root of a width that is known by them (`krylov.root`):
# a Jacobian's spread is small at all levels but the first, which are forgotten.
_ROOT_STEPS = 6


def likelihood(config: NFCConfig, *, relaxed: bool) -> Callable[..., Refined]:
  """The inner method under the form of width that the tie gives.

  Args:
    config: the settings.
    relaxed: whether a level goes further than that, by its reach.
  """
  stop: dict[str, Any] = config.stop._asdict()
  inner = config.inner

  def by_products(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    del level
    assert width.product is not None  # of the same tie
    if width.guess is not None:
      return Refined(
        *covariance.guessed_mean(
          observation, x0, width.product, width.guess, **stop
        )
      )
    if isinstance(inner, Mean):
      return Refined(*covariance.mean(observation, x0, width.product, **stop))
    assert isinstance(inner, Exact)  # `NFCConfig` refuses another method
    return Refined(
      *covariance.draw(
        key,
        observation,
        x0,
        width.product,
        root_steps=inner.root_steps or _ROOT_STEPS,
        **stop,
      )
    )

  def by_diagonal(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    assert width.diagonal is not None  # of the same tie
    target = gaussian.Target(observation, x0, width.diagonal)
    if isinstance(inner, Exact):
      return Refined(*gaussian.draw(key, target, **stop))
    if isinstance(inner, Mean):
      return Refined(*gaussian.mean(target, **stop))
    if isinstance(inner, Gradient):
      z = gaussian.descend(target, steps=inner.steps)
    else:
      z = gaussian.langevin(
        key, target, steps=inner.steps, step_size=level.step_size
      )
    return Refined(z, SolveInfo.closed_form())

  part = by_products if isinstance(config.width, Jacobian) else by_diagonal
  return _relaxed(part) if relaxed else part


def _relaxed(part: Callable[..., Refined]) -> Callable[..., Refined]:
  """Another part that goes further, by the level's reach."""

  def relaxed(
    key: chex.PRNGKey,
    observation: Observation,
    x0: jax.Array,
    width: Width,
    level: Level,
  ) -> Refined:
    refined = part(key, observation, x0, width, level)
    return refined._replace(z=x0 + level.reach * (refined.z - x0))

  return relaxed
