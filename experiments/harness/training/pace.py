"""How many steps a run of given minutes takes, and at which learning rate."""

import time

import jax
import jax.numpy as jnp
import numpy as np

# How long a run of given minutes is watched before its steps are set, and what
# is left unplanned.
WATCHED_S = 20.0
RESERVE = 0.03


def planned(
  watch: tuple[int, float], number: int, *, minutes: float, spent: float
) -> float:
  """Steps of the whole run, once its speed has been watched for long enough.

  Args:
    watch: step and second (of `time.monotonic`) since which it is watched.
    number: steps done.
    minutes: of the whole run.
    spent: its seconds so far.

  Returns:
    The number of steps, infinite as long as it is not known.
  """
  elapsed = time.monotonic() - watch[1]
  if elapsed < WATCHED_S:
    return np.inf
  pace = elapsed / (number - watch[0])
  left = minutes * 60 * (1 - RESERVE) - spent
  return number + max(round(left / pace), 1)


def check(minutes: float, steps: int) -> None:
  """Raises ValueError unless one of both is positive and the other 0."""
  if not (minutes >= 0 <= steps and (minutes > 0) != (steps > 0)):
    raise ValueError(
      f"one of minutes and steps must be positive, the other 0; got "
      f"{minutes} and {steps}"
    )


def learning_rate(
  step: jax.Array,
  total: jax.Array,
  *,
  rate: float,
  warmup: int,
  constant: float,
) -> jax.Array:
  """Linear warm-up, a plateau, and a linear fall to zero at `total`.

  Args:
    step: steps done.
    total: steps of the whole run; infinite while it is not known.
    rate: the greatest.
    warmup: steps until it is reached.
    constant: share of the run before it falls.

  Returns:
    Scalar.
  """
  step = step.astype(jnp.float32)
  rise = jnp.minimum((step + 1) / max(warmup, 1), 1)
  fall = (1 - step / total) / (1 - constant)
  return rate * rise * jnp.clip(fall, 0, 1)
