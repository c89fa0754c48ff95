"""The gates of a linear attention: how much it keeps, how much it writes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

# A log decay of -128 leaves 3e-56 of a state: nothing, in float32. A larger one
# would leave nothing either, but in the cumulative sum of a chunk it would
# round away the decays of the tokens after it.
FORGOTTEN = 128.0
LINEAR = -20.0


class Gates(NamedTuple):
  """What a token does to the state of a linear attention.

  Attributes:
    log_decay: at most 0, float32. [B, T, Hv], one decay a head, is what Gated
      DeltaNet has and its rule takes; a mixer may have [B, T, Hv, Dk], one a
      channel of the key (KDA, arXiv 2510.26692), and a rule of its own.
    beta: [B, T, Hv] in [0, 2], float32: how much of the value is written.
  """

  log_decay: jax.Array
  beta: jax.Array


def log_decay(a_log: jax.Array, a: jax.Array) -> jax.Array:
  """-exp(a_log) softplus(a), finite with its gradients for all finite input.

  By exponents, -exp(a_log + log softplus(a)): exp(a_log) alone overflows from
  89 on, and softplus(a) alone is 0 below -104, of which the product is NaN.
  """
  # softplus(a) = e^a - e^2a / 2 + ...: below the border its logarithm is a, to
  # e^-20 / 2 = 1e-9. Clipped for the branch that is not taken, whose infinite
  # derivative times 0 would be NaN.
  log_step = jnp.where(
    a < LINEAR, a, jnp.log(nnx.softplus(jnp.maximum(a, LINEAR)))
  )
  return -jnp.exp(jnp.minimum(a_log + log_step, math.log(FORGOTTEN)))
