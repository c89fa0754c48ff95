"""Provable bounds on the chunk inverse, before and after computing it.

For keys of norm at most 1 and 0 <= beta <= 2, unrolling the delta rule gives

  T_ij = -beta_i exp(G_i - G_j) k_i^T [prod_m (I - beta_m k_m k_m^T)] k_j,

a product of contractions, hence |T_ij| <= E_ij = beta_i exp(G_i - G_j) below
the diagonal: the *envelope*. From T - X = T R, R = I - (I + A) X, follows the
entrywise certificate |T - X| <= E |R| for any approximation X.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neumann_jax import checks
from neumann_jax.chunk_inverse import masks

UNIT_ROUNDOFF = 2.0**-24  # of float32
TINY = 2.0**-126  # smallest normal float32; what is below may become 0


def envelope(
  beta: jax.Array,
  log_decay: jax.Array,
  *,
  key_norm: float | jax.Array = 1.0,
) -> jax.Array:
  """Entrywise bound E on |T|, T = (I + A)^-1.

  A itself and every intermediate of the ladder and of the masked Newton
  iteration obey the same bound.

  Args:
    beta: [..., C] float, write strength, 0 <= beta <= 2.
    log_decay: [..., C] float, log decay of each token, <= 0.
    key_norm: largest norm n of a key, >= 1; one for all, or one for each
      chunk, [...], as `ChunkMatrices.key_norm`. Keys rounded to bfloat16 can
      exceed 1; E_ij grows by n^2 max(1, beta_max n^2 - 1)^(i-j-1).

  Returns:
    [..., C, C] float32: E below the diagonal, 1 on it, 0 above.

  Raises:
    ValueError: if key_norm < 1, if the shapes differ, or for a value out of
      range where values are known (not traced).

  Example:
    Writes at half strength, and half of the state forgotten per token:

    >>> import jax.numpy as jnp
    >>> half = jnp.full(4, 0.5)
    >>> envelope(half, jnp.log(half))
    Array([[1.    , 0.    , 0.    , 0.    ],
           [0.25  , 1.    , 0.    , 0.    ],
           [0.125 , 0.25  , 1.    , 0.    ],
           [0.0625, 0.125 , 0.25  , 1.    ]], dtype=float32)
  """
  _check_key_norm(key_norm)
  _check_same(beta=beta, log_decay=log_decay)
  checks.check_gates(beta, log_decay)
  return entrywise(beta, log_decay, key_norm=key_norm)


def entrywise(
  beta: jax.Array, log_decay: jax.Array, *, key_norm: float | jax.Array
) -> jax.Array:
  """`envelope` of gates that have been checked."""
  c = beta.shape[-1]
  beta = beta.astype(jnp.float32)
  # Float32 whatever the gates are: rounded to bfloat16, an entry could fall
  # below what it bounds.
  log_decay = log_decay.astype(jnp.float32)
  if isinstance(key_norm, float | int) and key_norm == 1:
    e = beta[..., :, None] * masks.decay_matrix(log_decay)  # [..., C, C]
  else:
    square = jnp.square(jnp.asarray(key_norm, jnp.float32))[
      ..., None
    ]  # [.., 1]
    # |I - beta k k^t| is |1 - beta n^2| along a long key, above 1 only there.
    largest = jnp.max(beta, axis=-1, keepdims=True)
    base = jnp.maximum(1.0, largest * square - 1.0)  # [..., 1]
    # Growth and decay in one exponent: apart, infinity could meet 0. It holds
    # one step too many, of the token that is written.
    growth = masks.decay_matrix(log_decay + jnp.log(base))
    e = (beta * square / base)[..., :, None] * growth
  lower = masks.strictly_lower(c)
  return jnp.where(lower, e, jnp.eye(c, dtype=jnp.float32))


def certify(a: jax.Array, t: jax.Array, envelope: jax.Array) -> jax.Array:
  """Entrywise bound on |(I + A)^-1 - t|, rounding of the check included.

    |T - X| <= E (|R| + (C+2) u (|A||X| + |X| + I)),  R = I - (I + A) X,

  with R in float32 at highest precision and u = 2^-24. One product for R, one
  for E times it, and one for the rounding term. What float32 flushes to zero
  is covered by multiples of its smallest normal number, 1.2e-38: under fast
  decay the bound of an entry is of that order, never 0.

  Args:
    a: [..., C, C] float32 or narrower; only the strictly lower part is read.
    t: [..., C, C], any approximation of the inverse of I + A.
    envelope: [..., C, C], from `envelope`, valid for the keys behind `a`.

  Returns:
    [..., C, C] float32, infinite where `t` is not finite.

  Raises:
    ValueError: if the shapes differ.

  Example:
    A band of one sub-diagonal loses up to 0.25 per entry, and the bound says
    at most 0.375:

    >>> import jax.numpy as jnp
    >>> from neumann_jax import InverseSpec, inverse
    >>> a = jnp.full((4, 4), 0.5)
    >>> t = inverse(a, InverseSpec("banded", order=1, residual_steps=1))
    >>> bound = certify(a, t, envelope(jnp.full(4, 0.5), jnp.zeros(4)))
    >>> f"{jnp.abs(inverse(a) - t).max():.3f} {bound.max():.3f}"
    '0.250 0.375'
  """
  _check_same(a=a, t=t, envelope=envelope)
  return _certified(a, t, envelope)


# One program: eagerly each of its 40 operations compiles its own, and passes
# over the matrices.
@jax.jit
def _certified(a: jax.Array, t: jax.Array, envelope: jax.Array) -> jax.Array:
  c = a.shape[-1]
  eye = jnp.eye(c, dtype=jnp.float32)
  a = jnp.where(masks.strictly_lower(c), a, 0).astype(jnp.float32)
  x = t.astype(jnp.float32)
  # In this order: eye - x cancels exactly on the diagonal, where both are 1.
  residual = eye - x - _dot(a, x)  # [..., C, C]
  magnitude = _dot(jnp.abs(a), jnp.abs(x)) + jnp.abs(x) + eye
  inner = jnp.abs(residual) + (c + 2) * UNIT_ROUNDOFF * magnitude
  # An entry of a, of x or of the product that is flushed to zero was below
  # TINY; it enters R once for every entry it is multiplied with.
  flushed = c + 2 + _sum(a, -1) + _sum(x, -2)
  inner = inner + TINY * flushed
  # The two products of non-negative matrices round as well: at most C + 2
  # relative roundings each, covered by this factor.
  slack = 1.0 + 4 * (c + 2) * UNIT_ROUNDOFF
  bound = slack * _dot(envelope.astype(jnp.float32), inner)
  bound = bound + TINY * (c + 1 + _sum(inner, -2))  # flushed in E, t, E inner
  return jnp.where(jnp.isfinite(bound), bound, jnp.inf)


def largest(envelope: jax.Array) -> jax.Array:
  """The largest entry of each envelope, which fixes a scale: [..., 1, 1].

  Float32 and constant to derivatives, as scales are.
  """
  found = jnp.max(envelope, axis=(-2, -1), keepdims=True)
  return lax.stop_gradient(found.astype(jnp.float32))


def truncation_tail(envelope: jax.Array) -> jax.Array:
  """Largest row sum of E beyond each band: what cutting T there can cost.

  Args:
    envelope: [..., C, C].

  Returns:
    [..., C] float32; entry m is max_i sum_(j < i-m) E_ij, the provable bound
    on the largest row sum of |T - X| when X is T cut to m sub-diagonals.
  """
  c = envelope.shape[-1]
  # Column d of `diagonals` holds E[i, i - d], so the tail is a reversed cumsum.
  row = jnp.arange(c)[:, None]
  col = row - jnp.arange(c)[None, :]
  diagonals = jnp.where(
    col >= 0,
    jnp.take_along_axis(
      envelope,
      jnp.broadcast_to(jnp.maximum(col, 0), envelope.shape),
      axis=-1,
    ),
    0,
  )  # [..., C, C]
  from_d = jnp.cumsum(diagonals[..., ::-1], axis=-1)[..., ::-1]
  beyond = jnp.pad(from_d[..., 1:], [(0, 0)] * (envelope.ndim - 1) + [(0, 1)])
  return jnp.max(beyond, axis=-2)


def required_band(envelope: jax.Array, tolerance: float) -> jax.Array:
  """Smallest band m whose provable tail is within tolerance: [...] int32."""
  tail = truncation_tail(envelope)
  return jnp.argmax(tail <= tolerance, axis=-1).astype(jnp.int32)


def _check_same(**arrays: jax.Array) -> None:
  shapes = {}
  for name, array in arrays.items():
    checks.check_array(name, array)
    shapes[name] = array.shape
  if len(set(shapes.values())) > 1:
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"shapes must be equal, got {found}")


def _check_key_norm(key_norm: float | jax.Array) -> None:
  if isinstance(key_norm, jax.core.Tracer):
    return
  if not hasattr(key_norm, "dtype"):
    checks.check_number("key_norm", key_norm)
  least = np.asarray(key_norm, np.float64).min()
  if not least >= 1.0:  # NaN is not
    raise ValueError(f"key_norm must be at least 1, got {least:g}")


def _sum(a: jax.Array, axis: int) -> jax.Array:
  return jnp.sum(jnp.abs(a), axis=axis, keepdims=True)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
