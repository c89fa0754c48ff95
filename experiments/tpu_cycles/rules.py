"""The whole rule on a TPU: which programs are compiled.

A program is some kernels; each runs a step of its grid at a time, and a step's
bundles are those of `schedule`. What XLA computes around the kernels is not
counted. Besides all tokens there is one token of many rows, a step of decoding,
and there are rules of other packages, where those are installed.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from experiments.peers import tpu_rules as peers
from experiments.rule_speed.problems import Shape
from neumann_jax import InverseSpec, RuleOptions, gated_delta_rule
from neumann_jax.delta_rule import one_token
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.layers import head_columns, head_norm, residual_norm
from neumann_jax.layers.gates import log_decay
from neumann_jax.layers.head_columns import Part
from neumann_jax.layers.norms import RMSNorm

CHUNK_SIZE = 64
WIDTH = 128
FORWARD, GRADIENTS = "forward", "with gradients"
# What the public times of kernels that were compiled the same way imply, in
# bundles a second on v6e and 7x: see docs/benchmarks/speed.md.
RATES = (1.1e9, 1.35e9)
# name: inverse, type of the operands, pass.
RULES = {
  f"{spec}, {dtype} operands, {which}": (InverseSpec.parse(spec), dtype, which)
  for spec, dtype in (
    ("ladder bfloat16", "bfloat16"),
    ("ladder bfloat16 refine", "bfloat16"),
    ("ladder float32", "float32"),
  )
  for which in (FORWARD, GRADIENTS)
}
# name: whether the gated norm follows, pass. What precedes the rule in a layer,
# as in tokamax's, or all that stands between a layer's projections.
COLUMNS = {
  f"ladder bfloat16, {form}, {which}": (normed, which)
  for form, normed in (
    ("convolution, gates and rule", False),
    ("between projections", True),
  )
  for which in (FORWARD, GRADIENTS)
}
TAPS, EPS = 4, 1e-6  # of the convolution and the norm
# name: type of the states.
ROWS = 128
TOKENS = {
  f"one token of {ROWS} rows, {dtype} states": dtype
  for dtype in ("float32", "bfloat16")
}
NAMES = (*RULES, *COLUMNS, *TOKENS, *peers.NAMES)
# What a layer has twice besides, which is no rule and has no row of its own.
NORM = f"norm of the residual stream, {FORWARD}"
WIDE = 4096  # of the residual stream of Qwen3.5-9B


class Program(NamedTuple):
  """A rule, ready to be lowered.

  Attributes:
    call: takes what `shapes` describes.
    shapes: of its arguments.
    chunks: of all value heads, which bundles are divided by; of one token,
      tokens.
    context: of a device, entered while the program is traced.
    trips: of the loop in kernels that have no grid, by what names begin with.
  """

  call: Callable[..., Any]
  shapes: tuple[jax.ShapeDtypeStruct, ...]
  chunks: int
  context: Callable[..., Any] = contextlib.nullcontext
  trips: Mapping[str, int] = MappingProxyType({})


def kernels(jaxpr: core.Jaxpr) -> list[tuple[str, int]]:
  """Name and grid steps of every kernel in a program."""
  return [
    (
      equation.params["name"],
      int(np.prod(equation.params["grid_mapping"].grid)),
    )
    for equation in _equations(jaxpr)
    if equation.primitive.name == "pallas_call"
  ]


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """Of a program and of all that it calls, kernels' bodies left out."""
  for equation in jaxpr.eqns:
    yield equation
    if equation.primitive.name == "pallas_call":
      continue
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
    ):
      if isinstance(value, core.ClosedJaxpr):
        yield from _equations(value.jaxpr)
      elif isinstance(value, core.Jaxpr):
        yield from _equations(value)


def _compiled(name: str) -> Callable[..., Any]:
  """The rule of a name by its public door, for the platform of a TPU."""
  spec, _, which = RULES[name]
  rule = functools.partial(
    gated_delta_rule, spec=spec, fused=True, implementation="tpu"
  )

  def both(*arrays):
    out, pull = jax.vjp(lambda *x: rule(*x)[0], *arrays[:5])
    return out, *pull(arrays[5])

  return rule if which == FORWARD else both


def program(name: str, shape: Shape) -> Program:
  """The program of a name.

  Args:
    name: one of NAMES, or NORM.
    shape: rows, tokens, key heads and value heads; of one token, the heads.

  Raises:
    ImportError: it is of a package that is not installed here.
    ValueError: a rule of another package is asked for several rows.
  """
  b, t, hk, hv = shape
  chunks = b * hv * -(-t // CHUNK_SIZE)
  if name in TOKENS:
    return _one_token(jnp.dtype(TOKENS[name]), hk, hv)
  if name == NORM:
    x = jax.ShapeDtypeStruct((b, t, WIDE), jnp.bfloat16)
    return Program(_norm, (x,), chunks)
  if name in COLUMNS:
    return _with_columns(*COLUMNS[name], shape, chunks)
  if name in peers.NAMES:
    if b != 1:
      raise ValueError(f"{name} is compiled for one row, not {b}")
    peer = peers.program(name, t, hk, hv, WIDTH)
    return Program(peer.call, peer.shapes, chunks, peers.as_on, peer.trips)
  dtype = jnp.dtype(RULES[name][1])
  keys = jax.ShapeDtypeStruct((b, t, hk, WIDTH), dtype)
  values = jax.ShapeDtypeStruct((b, t, hv, WIDTH), dtype)
  gates = jax.ShapeDtypeStruct((b, t, hv), jnp.float32)
  shapes: tuple[jax.ShapeDtypeStruct, ...] = (keys, keys, values, gates, gates)
  if RULES[name][2] == GRADIENTS:
    shapes = (*shapes, values)
  return Program(_compiled(name), shapes, chunks)


def _with_columns(
  normed: bool, which: str, shape: Shape, chunks: int
) -> Program:
  """From projections to the rule's outputs or beyond, heads side by side."""
  b, t, hk, hv = shape
  channels = (2 * hk + hv) * WIDTH
  how = RuleOptions(
    spec=InverseSpec(precision="bfloat16"), fused=True, implementation="tpu"
  )
  parts = Part(hk, True), Part(hk, True), Part(hv, False)

  def rule(x, beta, step, taps, a_log, *gate):
    history = jnp.zeros((b, channels, TAPS), x.dtype)
    heads, _ = head_columns.columns(
      how, parts, x, taps, history=history, segment_ids=None, axis=None
    )
    decay = log_decay(a_log, step.astype(jnp.float32))
    strength = jax.nn.sigmoid(beta.astype(jnp.float32))
    out, _ = gated_delta_rule(
      *(*heads, decay, strength),
      spec=how.spec,
      fused=True,
      implementation="tpu",
    )
    if normed:
      z, weight = gate
      return head_norm.gated(how, out, z, weight, EPS)
    return out.reshape(b, t, -1)

  def both(*arrays):
    out, pull = jax.vjp(rule, *arrays[:-1])
    return out, *pull(arrays[-1])

  narrow = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
  gate = narrow((b, t, hv))
  wide = narrow((b, t, hv * WIDTH))
  shapes = [
    *(narrow((b, t, channels)), gate, gate, narrow((TAPS, channels))),
    jax.ShapeDtypeStruct((hv,), jnp.float32),
  ]
  shapes += [wide, narrow((WIDTH,))] if normed else []
  if which == FORWARD:
    return Program(rule, tuple(shapes), chunks)
  return Program(both, (*shapes, wide), chunks)


def _norm(x: jax.Array) -> jax.Array:
  how = RuleOptions(fused=True, implementation="tpu")
  return residual_norm.normed(how, RMSNorm(WIDE), x)


def _one_token(dtype: jnp.dtype, hk: int, hv: int) -> Program:
  how = RuleOptions(implementation="tpu")

  def step(*arrays):
    scale = WIDTH**-0.5
    return one_token.step(how, Operands(*arrays[:5]), scale, arrays[5])

  keys, values = (
    jax.ShapeDtypeStruct((ROWS, n, WIDTH), jnp.bfloat16) for n in (hk, hv)
  )
  gate = jax.ShapeDtypeStruct((ROWS, hv), jnp.float32)
  state = jax.ShapeDtypeStruct((ROWS, hv, WIDTH, WIDTH), dtype)
  shapes = (keys, keys, values, gate, gate, state)
  return Program(step, shapes, ROWS * hv)
