"""The gated delta rule on a Hopper GPU: all of it in kernels, one gradient.

The forward pass writes R = T - I of every chunk and the outputs; u, w, states
and new values stay on the chip. The backward pass takes R and runs the
recurrence again for states and new values, then in reverse for the cotangents
of states, then every chunk's gradients. Nothing is summed by atomics: the same
bits at every call.

Kept for the backward pass, bytes a token and value head, R value heads a key
head: q and k 512 / R, v 256, gates 8, R 128. R and the outputs have names
for the policies of `jax.checkpoint`, see `kept_names`.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax

from neumann_jax import lowering, target
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from neumann_jax.delta_rule import gates as decays
from neumann_jax.delta_rule import kept_names, layout, precision
from neumann_jax.delta_rule.hopper import gradients, pieces, reverse, scan
from neumann_jax.delta_rule.hopper.tiles import CHUNK, WIDTH
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.kernels import wy_gpu
from neumann_jax.delta_rule.options import RuleOptions

# The rule by other means, of the same arguments.
Plain = Callable[..., tuple[jax.Array, jax.Array]]

# dbeta divides by beta; a smaller one writes nothing that bfloat16 adds.
_LEAST_BETA = 2.0**-40


# Offsets into an array are 32-bit numbers.
_LARGEST = 2**31


def takes(arrays: Operands, how: RuleOptions) -> bool:
  """Whether the kernels are to compute the rule; says why not, once.

  They are where the card is known to be a Hopper one: the CUDA devices of this
  host, or the device of `jax.sharding.use_abstract_mesh`, by which a host
  without one lowers for it.
  """
  if not how.fused or how.implementation not in ("auto", "gpu"):
    return False
  card = target.cuda_capability()
  reason = None if card is None else refusal(arrays, how, card)
  if reason is not None:
    _log_fallback(reason)
  return card is not None and reason is None


def refusal(
  arrays: Operands, how: RuleOptions, card: str = "9.0"
) -> str | None:
  """Why the kernels cannot run, as a clause, or None if they can.

  Args:
    arrays: the operands; only shapes and types are read.
    how: the options of the rule.
    card: the compute capability, or the name of a card that has another.
  """
  q, k, v = arrays.q, arrays.k, arrays.v
  if jax.__version_info__ < (0, 11):
    # Before, swizzled memory could not be read transposed.
    return f"Hopper kernels need jax 0.11, this is {jax.__version__}"
  if card != "9.0":
    return f"the card must be a Hopper one (9.0), got {card}"
  if any(x.dtype != jnp.bfloat16 for x in (q, k, v)):
    types = ", ".join(str(x.dtype) for x in (q, k, v))
    return f"q, k and v must be bfloat16, got {types}"
  if how.chunk_size != CHUNK:
    return f"chunk size {how.chunk_size} is not {CHUNK}"
  if (k.shape[-1], v.shape[-1]) != (WIDTH, WIDTH):
    widths = f"{k.shape[-1]} and {v.shape[-1]}"
    return f"Dk and Dv must be {WIDTH}, got {widths}"
  tokens = v.shape[0] * (v.shape[1] + CHUNK)
  if tokens * v.shape[2] * WIDTH >= _LARGEST:
    return "an array of 2^31 entries is too large for Hopper kernels"
  spec = resolve(how.spec, CHUNK)
  return wy_gpu.refusal(spec, CHUNK, k.dtype, (WIDTH, WIDTH))


@functools.cache
def _log_fallback(reason: str) -> None:
  logging.info("the rule takes Triton's kernels on a GPU: %s", reason)


def rule(
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
  plain: Plain,
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_rule` in kernels, where `takes` says so.

  Args:
    arrays: the operands.
    scale: of the output.
    initial_state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.
    how: the options of the rule.
    plain: the rule without these kernels, for "auto" on other platforms.
  """
  state = layout.grouped_state(initial_state, arrays.k, arrays.v)
  state = layout.flat_state(state)
  args = (*prepared(arrays, scale, segment_ids), state)
  return _rule(*layout.varying_alike(args), segment_ids, how, plain)


def prepared(
  arrays: Operands, scale: jax.Array, segment_ids: jax.Array | None
) -> tuple[Operands, jax.Array]:
  """The operands with documents as decays, and the scale in float32."""
  decay = decays.finite_decay(arrays.log_decay, segment_ids)
  return arrays._replace(log_decay=decay), jnp.asarray(scale, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rule(arrays, scale, state, segment_ids, how, plain):
  return _rule_fwd(arrays, scale, state, segment_ids, how, plain)[0]


def _rule_fwd(arrays, scale, state, segment_ids, how, plain):
  def elsewhere(arrays, scale, state, segment_ids):
    return plain(arrays, scale, state, segment_ids, how), no_inverse(arrays)

  def kernels(arrays, scale, state, segment_ids):
    del segment_ids  # its documents have become decays
    t = inverse(arrays, resolve(how.spec, CHUNK))
    return outputs(arrays, scale, state, t), t

  args = (arrays, scale, state, segment_ids)
  out, t = on_hopper(how, kernels, elsewhere, *args)
  return out, (*args, kept_names.named(t, kept_names.INVERSE))


def _rule_bwd(how, plain, residuals, given):
  def elsewhere(arrays, scale, state, segment_ids, t, *given):
    del t
    _, pull = jax.vjp(
      lambda *x: plain(*x, segment_ids, how), arrays, scale, state
    )
    return pull(given)

  def kernels(arrays, scale, state, segment_ids, *rest):
    del segment_ids
    return cotangents(arrays, scale, state, *rest)

  out = on_hopper(how, kernels, elsewhere, *residuals, *given)
  return (*out, None)


_rule.defvjp(_rule_fwd, _rule_bwd)


def on_hopper(how, kernels, elsewhere, *args):
  """One of two computations by the platform that a program is lowered for."""
  if how.implementation == "auto":
    # Not `lowering.by_platform`: the card is known, and of launches that are
    # traced here, a layer that is computed again drops those it can do without.
    return lax.platform_dependent(
      *args,
      default=layout.gives_varying(elsewhere),
      cuda=layout.gives_varying(kernels),
    )
  return layout.gives_varying(kernels)(
    *lowering.bound_to(how.implementation, args)
  )


def no_inverse(arrays: Operands) -> jax.Array:
  """What stands for R where these kernels do not run."""
  b, length, hv, _ = arrays.v.shape
  shape = (b, hv, length + -length % CHUNK, CHUNK)
  return jnp.zeros(shape, arrays.k.dtype)


@functools.partial(jax.jit, static_argnums=1)
def inverse(arrays: Operands, spec: InverseSpec) -> jax.Array:
  """R = T - I of every chunk, [B, Hv, N C, C]; `spec` is resolved."""
  _, k, _, log_decay, beta = _padded(arrays)
  return wy_gpu.inverse(k, log_decay, beta, spec=spec, chunk_size=CHUNK)


@jax.jit
def outputs(
  arrays: Operands, scale: jax.Array, state: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The outputs and the final state, from an initial state and R."""
  out, final = _scan(arrays, scale, state, t, pieces.starts)
  return out[:, : arrays.v.shape[1]], final


@jax.jit
def final_state(
  arrays: Operands, scale: jax.Array, state: jax.Array, t: jax.Array
) -> jax.Array:
  """The final state alone, by the chunks at the end that it depends on."""
  return _scan(arrays, scale, state, t, pieces.to_the_end)[1]


def _scan(arrays, scale, state, t, cut):
  q, k, v, gates, beta, scale = _for_kernels(arrays, scale)
  out, final = scan.outputs(
    q, k, v, t, gates, beta, scale, cut(gates), _flip(state)
  )
  return out, _flip(final)


@jax.jit
def cotangents(
  arrays: Operands,
  scale: jax.Array,
  state: jax.Array,
  t: jax.Array,
  do: jax.Array,
  dfinal: jax.Array,
) -> tuple[Operands, jax.Array, jax.Array]:
  """Cotangents of the operands, the scale and the initial state."""
  length, do = arrays.v.shape[1], layout.padded(do, CHUNK)
  scale = precision.nonzero(scale)
  given = q, k, v, gates, beta, scale = _for_kernels(arrays, scale)
  dv, dh, dstate = _reverse(given, t, do, dfinal, pieces.stops)
  y, h = scan.states(k, v, t, gates, beta, pieces.starts(gates), _flip(state))
  dq, dk, dg, dbeta = gradients.gradients(
    q, k, y, do, dv, gates, beta, scale, h, dh
  )
  # The outputs are linear in q, so that this is <dO, o> as well.
  dscale = jnp.sum(q.astype(jnp.float32) * dq.astype(jnp.float32)) / scale[0]
  # A token's gate is in the sum of every later token of its chunk.
  dg = lax.cumsum(dg.reshape(*dg.shape[:2], -1, CHUNK), axis=3, reverse=True)
  dg, dbeta = (jnp.swapaxes(y.reshape(dbeta.shape), 1, 2) for y in (dg, dbeta))
  operands = Operands(dq, dk, dv, dg, dbeta)
  operands = Operands(
    *(y[:, :length].astype(x.dtype) for x, y in zip(arrays, operands))
  )
  return operands, dscale, dstate


@jax.jit
def initial_cotangent(
  arrays: Operands,
  scale: jax.Array,
  t: jax.Array,
  do: jax.Array,
  dfinal: jax.Array,
) -> jax.Array:
  """Of the initial state alone, by the chunks that depend on it."""
  given = _for_kernels(arrays, precision.nonzero(scale))
  do = layout.padded(do, CHUNK)
  return _reverse(given, t, do, dfinal, pieces.to_the_start)[2]


def _reverse(given, t, do, dfinal, cut):
  q, k, _, gates, beta, scale = given
  dv, dh, dstate = reverse.reverse(
    q, k, do, t, gates, beta, scale, cut(gates), _flip(dfinal)
  )
  return dv, dh, _flip(dstate)


def _for_kernels(arrays: Operands, scale: jax.Array) -> tuple[jax.Array, ...]:
  """q, k, v, gates, beta and scale, as every kernel but the inverse's takes."""
  q, k, v, log_decay, beta = _padded(arrays)
  return q, k, v, _gates(log_decay), _by_head(beta), _one(scale)


def _padded(arrays: Operands) -> Operands:
  """Whole chunks; padding, and a beta of 0, writes next to nothing."""
  padded = Operands(*(layout.padded(x, CHUNK) for x in arrays))
  beta = jnp.maximum(padded.beta.astype(jnp.float32), _LEAST_BETA)
  return padded._replace(beta=beta)


def _gates(log_decay):
  """Base-2 exponents summed within a chunk: [B, T, Hv] -> [B, Hv, T]."""
  x = _by_head(log_decay)
  total = jnp.cumsum(x.reshape(*x.shape[:2], -1, CHUNK), axis=-1)
  return total.reshape(x.shape) * math.log2(math.e)


def _by_head(x):
  return jnp.swapaxes(x.astype(jnp.float32), 1, 2)


def _one(scale):
  """[1] float32; the backward pass divides by it, so that 0 is nearly 0."""
  scale = jnp.reshape(scale, (1,)).astype(jnp.float32)
  return jnp.where(scale == 0, 1e-30, scale)


def _flip(state):
  return jnp.swapaxes(state, 2, 3)
