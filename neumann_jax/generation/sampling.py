"""The next token from its logits: penalties, temperature, top-k, top-p, min-p.

How a row is drawn is data to the compiled program, `Draws`: a server meets
other settings at every request, and none of them may cost a compilation.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax import checks
from neumann_jax.generation.sampling_spec import SamplingSpec, check_draws

# Candidates that are sorted where every row's top_k is at most this: a sort of
# a vocabulary of 248,320 costs more than a layer, and users cut at 20 to 50.
SHORT = 64
# Above every sum of probabilities, so that rounding cuts nothing.
_ALL = 2.0


class Draws(NamedTuple):
  """The specs of B rows as arrays.

  Attributes:
    greedy: [B] bool.
    temperature: [B] float32, above 0 unless the row is greedy.
    top_k: [B] int32, V for all.
    top_p: [B] float32, above 1 for all.
    min_p: [B] float32, log of it; -inf for none.
    repetition: [B] float32.
    presence: [B] float32.
    form: [] int32, the cheapest of `_FORMS` that draws every row.
  """

  greedy: np.ndarray
  temperature: np.ndarray
  top_k: np.ndarray
  top_p: np.ndarray
  min_p: np.ndarray
  repetition: np.ndarray
  presence: np.ndarray
  form: np.ndarray


def as_draws(specs: Sequence[SamplingSpec], vocab_size: int) -> Draws:
  """The specs of B rows, one each, for V tokens."""
  # The host decides on the form: a program that asked its operands would do so
  # at every token.
  forms = {_form(spec) for spec in specs}
  # A short sort holds all that a row may draw only where each row is cut so
  # short: beside one that is not cut, the whole vocabulary is sorted.
  form = len(_FORMS) - 1 if {1, 2} <= forms else max(forms)
  columns = [
    (
      spec.temperature or 1.0,
      spec.top_k or vocab_size,
      _ALL if spec.top_p in (None, 1) else spec.top_p,
      math.log(spec.min_p) if spec.min_p else -math.inf,
      spec.repetition_penalty,
      spec.presence_penalty,
    )
    for spec in specs
  ]
  temperature, top_k, top_p, min_p, repetition, presence = np.array(
    columns, np.float64
  ).T
  return Draws(
    np.array([spec.greedy for spec in specs]),
    temperature.astype(np.float32),
    top_k.astype(np.int32),
    top_p.astype(np.float32),
    min_p.astype(np.float32),
    repetition.astype(np.float32),
    presence.astype(np.float32),
    np.array(form, np.int32),
  )


def _form(spec: SamplingSpec) -> int:
  if spec.greedy:
    return 0
  if spec.top_k is None and spec.top_p in (None, 1):
    return 1
  return 2 if spec.top_k is not None and spec.top_k <= SHORT else 3


def sample(
  logits: jax.Array, key: jax.Array | None, spec: SamplingSpec
) -> jax.Array:
  """One token a row.

  Args:
    logits: [B, V] floating point; -inf rules a token out.
    key: for the draws; row b draws from `fold_in(key, b)`, so that the rows
      below it change nothing. None will do for a greedy spec.
    spec: the distribution; penalties know no tokens here and have no effect.

  Returns:
    [B] int32.

  Raises:
    TypeError: if logits are not floating point, or key is no key.
    ValueError: for a wrong shape, a top_k above V or a missing key; and, on
      concrete logits, for NaN, +inf or a row of -inf.
  """
  check_logits(logits)
  rows, size = logits.shape
  check_draws(spec, key, size)
  if key is None:
    key = unused_key()
  draws = as_draws([spec] * rows, size)
  return draw(logits.astype(jnp.float32), key, draws)


def draw(logits: jax.Array, key: jax.Array, draws: Draws) -> jax.Array:
  """One token a row, [B] int32, from logits [B, V] float32; see `sample`."""
  # Branches, because most requests need neither noise nor a sort.
  return lax.switch(draws.form, _FORMS, logits, key, draws)


def penalised(logits: jax.Array, seen: jax.Array, draws: Draws) -> jax.Array:
  """Logits [B, V] less what their tokens cost a second time.

  Args:
    logits: [B, V] float32.
    seen: [B, V] int8, 1 for tokens of the prompt, 2 for generated ones.
    draws: of the rows.
  """
  factor = draws.repetition[:, None]
  worse = jnp.where(logits > 0, logits / factor, logits * factor)
  logits = jnp.where(seen > 0, worse, logits)
  return logits - jnp.where(seen > 1, draws.presence[:, None], 0)


def candidates(
  logits: jax.Array, draws: Draws, count: int
) -> tuple[jax.Array, jax.Array]:
  """The tokens that can be drawn, the most probable first.

  Args:
    logits: [B, V] float32.
    draws: of the rows; top_k of none exceeds count unless count is V.
    count: K, of the candidates that are sorted.

  Returns:
    Log weights [B, K], -inf where the token was cut, and ids [B, K] int32.
  """
  scaled, ids = lax.top_k(
    _scaled(logits, draws), count
  )  # ties: lower ids first
  place = jnp.arange(count, dtype=jnp.int32)
  scaled = jnp.where(place < draws.top_k[:, None], scaled, -jnp.inf)
  share = jax.nn.softmax(scaled, axis=-1)  # [B, K]
  before = jnp.cumsum(share, axis=-1) - share  # [B, K]
  # The first is always kept: nothing comes before it.
  scaled = jnp.where(before < draws.top_p[:, None], scaled, -jnp.inf)
  return _above_min_p(scaled, draws), ids


def _scaled(logits: jax.Array, draws: Draws) -> jax.Array:
  # From the largest: 0 there, and nothing overflows however low the
  # temperature is.
  below = logits - jnp.max(logits, axis=-1, keepdims=True)
  return jnp.where(below == 0, 0, below / draws.temperature[:, None])


def _above_min_p(scaled: jax.Array, draws: Draws) -> jax.Array:
  # The largest log weight is 0: of probabilities only their ratio is asked.
  return jnp.where(scaled >= draws.min_p[:, None], scaled, -jnp.inf)


def _noise(logits: jax.Array, key: jax.Array, draws: Draws) -> jax.Array:
  """[B, V], one Gumbel variable for each token; 0 where a row is greedy.

  The largest sum of a log weight and its noise is a draw from the weights.
  """
  # By id and not by rank: a row then draws the same whether its neighbours
  # need a sort or not. One key a row, whatever the batch below it.
  rows = jnp.arange(logits.shape[0])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  gumbel = functools.partial(jax.random.gumbel, shape=logits.shape[1:])
  noise = jax.vmap(lambda key: gumbel(key, dtype=jnp.float32))(keys)
  return jnp.where(draws.greedy[:, None], 0, noise)


def _largest(logits: jax.Array, key: jax.Array, draws: Draws) -> jax.Array:
  del key, draws
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _uncut(logits: jax.Array, key: jax.Array, draws: Draws) -> jax.Array:
  scaled = _above_min_p(_scaled(logits, draws), draws)
  return _largest(scaled + _noise(logits, key, draws), key, draws)


def _cut(
  count: int, logits: jax.Array, key: jax.Array, draws: Draws
) -> jax.Array:
  scaled, ids = candidates(logits, draws, min(count, logits.shape[1]))
  noise = jnp.take_along_axis(_noise(logits, key, draws), ids, axis=1)
  place = _largest(scaled + noise, key, draws)  # [B]
  return jnp.take_along_axis(ids, place[:, None], axis=1)[:, 0]


# By what they cost; each draws the same tokens as those before it.
_FORMS: tuple[Callable[..., jax.Array], ...] = (
  _largest,
  _uncut,
  functools.partial(_cut, SHORT),
  functools.partial(_cut, np.iinfo(np.int32).max),
)


def unused_key() -> jax.Array:
  """A key for those who draw nothing, so that they need no other program."""
  # From NumPy: a device array of zeros would be a program more.
  data: Any = np.zeros(2, np.uint32)
  return jax.random.wrap_key_data(data, impl="threefry2x32")


def check_logits(logits: jax.Array) -> None:
  """Raises unless logits are [B >= 1, V >= 1] and can be drawn from."""
  checks.check_floating("logits", logits)
  if logits.ndim != 2 or 0 in logits.shape:
    raise ValueError(
      f"logits must have shape [B >= 1, V >= 1], got {logits.shape}"
    )
  # One pass finds NaN, +inf and rows of -inf: the largest entry shows each.
  if isinstance(logits, jax.core.Tracer):
    return
  largest = np.asarray(logits, np.float32).max(axis=1)  # NaN if any is
  if not np.isfinite(largest).all():
    raise ValueError(
      "logits must have no NaN and a finite largest entry in every row, got "
      f"{largest[~np.isfinite(largest)][0]} for one"
    )
