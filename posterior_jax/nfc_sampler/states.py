"""What goes from one level to the next: its noise, and what it heeds."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from posterior_jax.base import Observation
from posterior_jax.nfc_sampler.levels import Level
from posterior_jax.nfc_sampler.records import Sigma

# Misfits further off, in units of the noise, say that something else is wrong
# than the noise that was taken out.
_BELIEVED = 0.5, 4.0


def heeding(
  level: Level, misfit: jax.Array, *, discrepancy: jax.Array | float
) -> Level:
  """The level whose sigma, [..., N, 1, 1, 1], is less where r is above 1.

  Args:
    level: as it is for all images.
    misfit: r of every image's last prediction, [..., N].
    discrepancy: q of sigma r^-q.
  """
  return level._replace(sigma=heeded(level.sigma, misfit, discrepancy))


def heeded(
  sigma: jax.Array, misfit: jax.Array, discrepancy: jax.Array | float
) -> jax.Array:
  """sigma r^-q of every image, [..., N, 1, 1, 1]; as for `heeding`."""
  ratio = jnp.clip(misfit, *_BELIEVED)[..., None, None, None]
  return sigma * ratio**-discrepancy


def leading(x0: jax.Array, before: jax.Array, level: Level) -> jax.Array:
  """x0 + pace (x0 - before): ahead of x0 by its last move times the pace."""
  return x0 + level.pace * (x0 - before)


def renoise(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
  """image + sigma' n: the state forgets how the image came about, as in DAPS.

  Noise that a DDIM step would keep is correlated with the error of the last
  prediction; fresh noise gives early mistakes no way to survive.
  """
  noise = jax.random.normal(key, image.shape, image.dtype)
  return image + level.following * noise


def keeping(renewal: jax.Array | float) -> Callable[..., jax.Array]:
  """The part that goes on with the state's own noise.

    x' = z + sigma' (k (x - z) / sigma + sqrt(1 - k^2) n),
    k = (sigma' / sigma)^(r^2)

  with z the level's image. Where that is E[x0 | x, y], this is a step of the
  reverse process given y: at r = 0 of the probability flow, at r = 1 the
  ancestral one, as DDIM has both (Song et al. 2021, eq. 12; its eta is r where
  neighbouring levels are close), and above 1 with a part of Langevin dynamics
  at every level. How much is drawn anew on the way from one noise to another
  does not depend on the number of levels between them.

  Args:
    renewal: r, >= 0.
  """

  def part(
    key: chex.PRNGKey, x: jax.Array, image: jax.Array, level: Level
  ) -> jax.Array:
    # Another pass has mostly more noise than there is to keep.
    ratio = level.following / level.sigma
    kept = jnp.where(level.anew > 0, 0.0, ratio**renewal**2)
    noise = jax.random.normal(key, image.shape, image.dtype)
    mixed = kept * (x - image) / level.sigma + (1 - kept**2) ** 0.5 * noise
    return image + level.following * mixed

  return part


def filling(
  renewal: jax.Array | float, width: Sigma, stop: Mapping[str, Any]
) -> Callable[..., tuple[Observation, jax.Array]]:
  """The part that noises an image and the measurement that it is moved to.

    f  = sigma' (sqrt(1 - r^2) m + r n3),  m = (x - x0) / sigma
    z' = z + f,  y' = y + sqrt(2 sigma'^2 / C - 1) s n1 + sigma' A n2

  under the width C <= 2 sigma'^2. In a singular direction of A, of value t, the
  move takes w = t^2 / (t^2 + s^2 / C) of y' and 1 - w of z'. So y and n1 have
  the variance 2 w (1 - w) sigma'^2 together, n2 w^2 sigma'^2 and f (1 - w)^2
  sigma'^2: sigma'^2 in all, of which the measurement's own noise is a part.
  `baselines.ddnm` does so where an operator has no decomposition.

  That takes the noises to be independent, but m has a part of y's, level after
  level. Where the width has a largest value, `most`, m is drawn anew in the
  directions that the measurement shows then, t >> c = s / most:

    m' = m + (A^T A + c^2)^-1 A^T (A (n4 - m) + sqrt(2) c n5)

  which keeps c^2 / (t^2 + c^2) of m and is white again.

  Args:
    renewal: r, in [0, 1].
    width: its factor, in (0, 2], and largest value. A traced factor above 2 is
      not refused: directions that A shows have more noise than sigma' then.
    stop: tolerance and max_iterations of the solve for m'.
  """

  def part(
    key: chex.PRNGKey,
    observation: Observation,
    x: jax.Array,
    x0: jax.Array,
    image: jax.Array,
    level: Level,
  ) -> tuple[Observation, jax.Array]:
    operator = observation.operator
    keys = jax.random.split(key, 3)
    within, fresh = (jax.random.normal(k, x.shape, x.dtype) for k in keys[1:])
    kept = (x - x0) / level.sigma
    if width.most is not None and not _whole(renewal):
      kept = _unseen(keys[0], observation, kept, width.most, stop)
    # Another pass keeps none, as in `keeping`. Of two plain numbers x64 would
    # make float64.
    anew = jnp.asarray(renewal, x.dtype)
    anew = jnp.where(level.anew > 0, 1.0, anew)
    free = level.following * ((1 - anew**2) ** 0.5 * kept + anew * fresh)
    data = observation.y + operator.forward(level.following * within)
    share: jax.Array | float = 2 / width.factor
    if width.most is not None:
      share = jnp.maximum(share, 2 * (level.following / width.most) ** 2)
    # A traced factor above 2, which nobody can refuse, brings in more noise
    # than the level has: n1 is 0 then. The last level has no noise.
    share = jnp.maximum(share - 1, 0.0) ** 0.5
    beside = jnp.where(level.following > 0, share, 0.0)
    beside = beside * jnp.asarray(observation.noise_std, x.dtype)
    data += beside * jax.random.normal(keys[0], data.shape, data.dtype)
    return Observation(data, operator, observation.noise_std), image + free

  return part


def _unseen(
  key: chex.PRNGKey,
  observation: Observation,
  noise: jax.Array,
  most: jax.Array | float,
  stop: Mapping[str, Any],
) -> jax.Array:
  """White noise, drawn anew where A is above noise_std / most."""
  operator = observation.operator
  c = jnp.asarray(observation.noise_std / most, noise.dtype)
  # keys[0] of the caller also draws n1.
  keys = jax.random.split(jax.random.fold_in(key, 1))
  fresh = jax.random.normal(keys[0], noise.shape, noise.dtype)
  data = operator.forward(fresh - noise)
  data += 2**0.5 * c * jax.random.normal(keys[1], data.shape, data.dtype)
  shift, _ = operator.normal_solve(
    operator.adjoint(data),
    precision=c**2,
    noise_std=jnp.ones((), noise.dtype),
    **stop,
  )
  return noise + shift


def renoising(renewal: float) -> Callable[..., jax.Array]:
  """`renoise` with a share of the noise."""

  def part(key: chex.PRNGKey, image: jax.Array, level: Level) -> jax.Array:
    following = level._replace(following=renewal * level.following)
    return renoise(key, image, following)

  # A factor of 1 would be one more rounding of every state.
  return renoise if _whole(renewal) else part


def _whole(renewal: jax.Array | float) -> bool:
  # One that is traced is known only when it runs.
  return not isinstance(renewal, jax.core.Tracer) and bool(renewal == 1)
