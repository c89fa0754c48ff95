"""The gated delta rule on a Hopper GPU: all of it in kernels, one gradient.

The forward pass writes R = T - I of every chunk and the outputs; u, w, states
and new values stay on the chip. The backward pass takes R and runs the
recurrence again for states and new values, then in reverse for the cotangents
of states, then every chunk's gradients. Nothing is summed by atomics: the same
bits at every call.

The kernels take keys of 128 and 256 and values in blocks of 128 columns. Widths
of 64 take columns of zeros, where a gradient is asked for; in shards of the
tokens they always do.

Kept for the backward pass, bytes a token and value head, R value heads a key
head: q and k 4 Dk / R, v 2 Dv, gates 8, R 128. R and the outputs have names
for the policies of `jax.checkpoint`, see `kept_names`. On its way it holds the
state before and behind every chunk, Dk Dv / 16 bytes a token and value head.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from neumann_jax import backends, lowering, reverse_mode, target
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.delta_rule import gates as decays
from neumann_jax.delta_rule import kept_names, layout
from neumann_jax.delta_rule.hopper import passes
from neumann_jax.delta_rule.hopper.tiles import CHUNK, WIDTH
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.kernels import wy_gpu
from neumann_jax.delta_rule.options import RuleOptions

# The rule by other means, of the same arguments.
Plain = Callable[..., tuple[jax.Array, jax.Array]]

# Offsets into an array are 32-bit numbers.
_LARGEST = 2**31
# Of keys and values, 64 with columns of zeros. The inverse's kernel takes
# powers of two; of keys of 256, 64 columns of a state are half of the registers
# that a warpgroup can have.
_WIDTHS = 64, 128, 256
# What runs where these kernels do not.
_PARTS = "the rule in parts"


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
    backends.say_fallback(how.implementation, "gpu", reason, _PARTS)
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
  widths = k.shape[-1], v.shape[-1]
  if not all(width in _WIDTHS for width in widths):
    return f"Dk and Dv must be 64, 128 or 256, got {widths[0]} and {widths[1]}"
  tokens = v.shape[0] * (v.shape[1] + CHUNK)
  if tokens * v.shape[2] * max(WIDTH, *widths) >= _LARGEST:
    return "an array of 2^31 entries is too large for Hopper kernels"
  spec = resolve(how.spec, CHUNK)
  if spec.quant is not None:
    # dbeta is <dv, X / beta> / beta, and such an error outlives a small beta.
    return "their gradient of beta is inexact for an inverse by integers"
  return wy_gpu.refusal(spec, CHUNK, k.dtype, widths)


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
  args = reverse_mode.marked(layout.varying_alike(args))
  return _rule(*args, segment_ids, how, plain)


def prepared(
  arrays: Operands, scale: jax.Array, segment_ids: jax.Array | None
) -> tuple[Operands, jax.Array]:
  """The operands with documents as decays, and the scale in float32."""
  decay = decays.finite_decay(arrays.log_decay, segment_ids)
  return arrays._replace(log_decay=decay), jnp.asarray(scale, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rule(arrays, scale, state, segment_ids, how, plain):
  widths = arrays.k.shape[-1], arrays.v.shape[-1]
  if any(width % WIDTH for width in widths):
    # Without gradients Triton's kernels of the width itself are faster.
    return plain(arrays, scale, state, segment_ids, how)
  return _rule_fwd(arrays, scale, state, segment_ids, how, plain)[0]


def _rule_fwd(arrays, scale, state, segment_ids, how, plain):
  def elsewhere(arrays, scale, state, segment_ids):
    return plain(arrays, scale, state, segment_ids, how), no_inverse(arrays)

  def kernels(arrays, scale, state, segment_ids):
    del segment_ids  # its documents have become decays
    t = passes.inverse(arrays, resolve(how.spec, CHUNK))
    return passes.outputs(arrays, scale, state, t), t

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
    return passes.cotangents(arrays, scale, state, *rest)

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
