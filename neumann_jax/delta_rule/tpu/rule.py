"""The gated delta rule on a TPU: all of it in one kernel, its gradient too.

A, T, u, w and new values never leave vector memory. The forward pass of a
gradient writes T of every chunk and the state before every second one, which
the backward pass reads; `jax.checkpoint` knows them, and the outputs, by
`kept_names`.

Kept for the backward pass, bytes a token and value head, R value heads a key
head, of bfloat16 operands: q and k 512 / R, v 256, gates 8, T 128, states 256.
Where a program may be lowered for other platforms as well, T and states are
computed again instead.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import backends, lowering, reverse_mode, target
from neumann_jax.chunk_inverse.kernels import tpu
from neumann_jax.delta_rule import gates, kept_names, layout, precision
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.options import RuleOptions
from neumann_jax.delta_rule.tpu import (
  backward_kernel,
  forward_kernel,
  grid_plan,
)
from neumann_jax.delta_rule.tpu.grid_plan import CHUNK, LANES, Plan

# (how, operands, scale, initial_state, segment_ids) -> out, final state.
Rule = Callable[..., tuple[jax.Array, jax.Array]]

# What runs where the rule is no kernel as a whole.
PARTS = "a kernel and a scan"
# What runs where neither it nor what is around it is one.
_UNFUSED = "what is not fused"
# dbeta divides by beta; a smaller one writes nothing that float32 adds.
_LEAST_BETA = 2.0**-40


def takes(arrays: Operands, how: RuleOptions) -> bool:
  """Whether the kernels may compute the rule; says why not, once."""
  if not asked(how):
    return False
  reason = refusal(how, arrays)
  if reason is not None:
    backends.say_fallback(how.implementation, "tpu", reason, PARTS)
  return reason is None


def asked(how: RuleOptions) -> bool:
  """Whether options ask for the rule, and what is around it, as TPU kernels."""
  if not how.fused or how.implementation not in ("auto", "tpu", "interpret"):
    return False
  # A GPU's own kernels keep more for the backward pass than what stands for
  # these elsewhere. A CPU may stand for a TPU that a program is lowered for.
  if how.implementation != "auto":
    return True
  on_gpu = target.platform() in ("gpu", "cuda", "rocm")
  if on_gpu:
    reason = "it is traced for this host's GPU; 'tpu' lowers it for a TPU"
    backends.say_fallback(how.implementation, "tpu", reason, _UNFUSED)
  return not on_gpu


def refusal(how: RuleOptions, arrays: Operands, *rest: Any) -> str | None:
  """Why the kernels cannot run, as a clause, or None if they can.

  Args:
    how: the options of the rule.
    arrays: the operands; only shapes and types are read.
    *rest: what else the rule is given.
  """
  del rest
  q, k, v = arrays.q, arrays.k, arrays.v
  types = [str(x.dtype) for x in (q, k, v)]
  if types not in (["bfloat16"] * 3, ["float32"] * 3):
    return f"q, k and v must all be bfloat16 or float32, got {', '.join(types)}"
  if how.chunk_size != CHUNK:
    return f"chunk size {how.chunk_size} is not {CHUNK}"
  if (k.shape[-1], v.shape[-1]) != (LANES, LANES):
    widths = f"{k.shape[-1]} and {v.shape[-1]}"
    return f"Dk and Dv must be {LANES}, got {widths}"
  ratio = v.shape[-2] // k.shape[-2]
  if ratio > grid_plan.MOST_VALUES:
    return (
      f"a key head may have {grid_plan.MOST_VALUES} value heads, got {ratio}"
    )
  quant = how.spec.quant
  if quant is not None and quant.scale == "envelope":
    return "a fused kernel has no envelope; use QuantSpec(scale='dynamic')"
  plan = grid_plan.plan(v.shape[1], k.shape[2], v.shape[2])
  return tpu.refusal(how.inverse, CHUNK) or tpu.too_large(
    plan.bytes(k.dtype.itemsize)
  )


def rule(
  operation: backends.Operation,
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  how: RuleOptions,
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_rule` in kernels, where `takes` says so.

  Args:
    operation: from `operation`.
    arrays: the operands.
    scale: of the output.
    initial_state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.
    how: the options of the rule.
  """
  given = (arrays, jnp.asarray(scale, jnp.float32), initial_state)
  given = layout.varying_alike(given)
  return backends.run_with_backward(
    operation, how.implementation, how, *given, segment_ids
  )


def operation(plain: Rule) -> backends.Operation:
  """The rule as an operation.

  Args:
    plain: the rule without these kernels, for "auto" on other platforms.
  """

  def fwd(implementation, how, *operands):
    if implementation == "auto" and target.platform() != "tpu":
      out = backends.run(found, implementation, how, *operands)
      return out, (operands, None)

    def elsewhere(*operands):
      kept = jax.eval_shape(kernels, *operands)[1]
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)
      return plain(how, *operands), zeros

    kernels = functools.partial(forward, how)
    out, kept = _on(implementation, kernels, elsewhere, *operands)
    named = (
      kept_names.named(x, name)
      for x, name in zip(kept, (kept_names.INVERSE, kept_names.STATES))
    )
    return out, (operands, tuple(named))

  def bwd(implementation, how, residuals, cotangents):
    def elsewhere(operands, kept, cotangents):
      del kept
      *floats, ids = operands
      _, pull = jax.vjp(lambda *x: plain(how, *x, ids), *floats)
      return pull(cotangents)

    kernels = functools.partial(backward, how)
    out = _on(implementation, kernels, elsewhere, *residuals, cotangents)
    return (*out, None)

  found = backends.Operation(
    plain, {"tpu": backends.Kernel(refusal, launch)}, fwd=fwd, bwd=bwd
  )
  return found


def _on(implementation: str, kernels: Callable, elsewhere: Callable, *args):
  """One of two computations, as `backends.run` chooses."""

  @reverse_mode.differentiated_once
  def chosen(*args):
    if implementation == "interpret":
      return kernels(*args, interpret=pltpu.InterpretParams())
    if implementation == "tpu":
      return kernels(*lowering.bound_to(implementation, args))
    plain = layout.gives_varying(elsewhere)
    return lowering.by_platform(
      jax.make_jaxpr(plain, return_shape=True)(*args),
      {"tpu": layout.gives_varying(kernels)},
      *args,
    )

  return chosen(*args)


def launch(
  how: RuleOptions,
  arrays: Operands,
  scale: jax.Array,
  initial_state: jax.Array | None,
  segment_ids: jax.Array | None,
  **options: Any,
) -> tuple[jax.Array, jax.Array]:
  """`gated_delta_rule` by the kernel, of operands that `refusal` allows.

  Args:
    how: the options of the rule.
    arrays: the operands.
    scale: of the output.
    initial_state: [B, Hv, Dk, Dv] or None.
    segment_ids: [B, T] or None.
    **options: `interpret`, as of `forward_kernel.forward`.
  """
  plan, args = _prepared(arrays, scale, initial_state, segment_ids)
  out, final = forward_kernel.forward(
    *args, spec=how.inverse, how=plan, **options
  )
  return out[:, : arrays.v.shape[1]], final


def _prepared(arrays, scale, initial_state, segment_ids) -> tuple[Plan, tuple]:
  """What a grid step holds, and what the forward kernel takes."""
  # Documents reach the kernel as tokens that forget.
  decay = gates.finite_decay(arrays.log_decay, segment_ids)
  state = layout.grouped_state(initial_state, arrays.k, arrays.v)
  plan = grid_plan.plan(arrays.v.shape[1], arrays.k.shape[2], arrays.v.shape[2])
  given = arrays._replace(log_decay=decay)
  padded = Operands(*(layout.padded(x, plan.tokens) for x in given))
  # After padding, whose tokens then write next to nothing of zeros.
  beta = jnp.maximum(padded.beta.astype(jnp.float32), _LEAST_BETA)
  args = (
    *padded._replace(beta=beta),
    jnp.asarray(scale, jnp.float32),
    layout.flat_state(state),
  )
  # Under `jax.shard_map` all that enters a kernel must vary alike.
  return plan, tuple(layout.varying_as(x, args) for x in args)


def forward(
  how: RuleOptions, *operands: Any, **options: Any
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """`launch`, and what `backward` reads: T and the states of chunks."""
  plan, args = _prepared(*operands)
  out, final, t, states = forward_kernel.forward(
    *args, spec=how.inverse, how=plan, keep=True, **options
  )
  return (out[:, : operands[0].v.shape[1]], final), (t, states)


def backward(
  how: RuleOptions,
  operands: tuple,
  kept: tuple[jax.Array, jax.Array] | None,
  cotangents: tuple[jax.Array, jax.Array],
  **options: Any,
) -> tuple[Operands, jax.Array, jax.Array | None]:
  """Cotangents of the operands, the scale and the initial state.

  Args:
    how: the options of the rule.
    operands: arrays, scale, initial_state and segment_ids of `launch`.
    kept: from `forward`; None computes it again.
    cotangents: of the outputs and the final state.
    **options: `interpret`, as of `forward_kernel.forward`.
  """
  arrays, _, initial_state, segment_ids = operands
  if kept is None:
    _, kept = forward(how, *operands, **options)
  plan, args = _prepared(*operands)
  d_out = layout.padded(cotangents[0].astype(arrays.v.dtype), plan.tokens)
  given = (*kept, d_out, cotangents[1].astype(jnp.float32))
  t, states, d_out, d_final = (layout.varying_as(x, args) for x in given)
  # The chunks of one state: without an inverse there is no group of packs to
  # fill, and twice as much would compile twice as long.
  one = plan._replace(chunks=plan.kept_every)
  q, k, v, decay, beta, given_scale, _ = args
  scale = precision.nonzero(given_scale)
  found = backward_kernel.gradients(
    *(q, k, v, decay, beta, scale, t, states, d_out, d_final),
    how=one,
    integers=how.inverse.quant is not None,
    **options,
  )
  d_arrays = Operands(
    *(
      y[:, : x.shape[1]].astype(x.dtype)
      for x, y in zip(arrays, found, strict=False)
    )
  )
  # A decay that was cut has no gradient.
  _, pull = jax.vjp(
    lambda x: gates.finite_decay(x, segment_ids), arrays.log_decay
  )
  (d_decay,) = pull(d_arrays.log_decay.astype(jnp.float32))
  # The outputs are linear in q, so that this is <dO, o> as well.
  d_scale = jnp.sum(q.astype(jnp.float32) * found.q.astype(jnp.float32))
  d_scale = d_scale / scale
  d_q = precision.of_scaled(d_arrays.q, given_scale)
  d_state = None
  if initial_state is not None:
    d_state = found.state.astype(initial_state.dtype)
  return d_arrays._replace(q=d_q, log_decay=d_decay), d_scale, d_state
