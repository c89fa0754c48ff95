"""How wrong the rule's TPU kernels are, by the interpreter on the CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import key_families
from experiments.peers import tpu_rules as peers
from experiments.rule_speed import problems
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles.rules import (
  COLUMNS,
  FORWARD,
  RULES,
  TOKENS,
  WIDTH,
)
from neumann_jax import RuleOptions
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.tpu import rule as tpu_rule
from neumann_jax.delta_rule.tpu import token_kernel


def _interpreted(name: str) -> Callable[..., list[jax.Array]]:
  """The bodies of its kernels on the CPU, of the fields of a problem."""
  spec, _, which = RULES[name]
  how = RuleOptions(spec=spec, fused=True)
  scale = jnp.float32(WIDTH**-0.5)

  def forward(problem):
    operands = (Operands(*problem[:5]), scale, None, None)
    out, _ = tpu_rule.launch(how, *operands, interpret=True)
    return [out]

  def both(problem):
    operands = (Operands(*problem[:5]), scale, None, None)
    (out, final), kept = tpu_rule.forward(how, *operands, interpret=True)
    cotangents = (problem.do, jnp.zeros_like(final))
    found = tpu_rule.backward(how, operands, kept, cotangents, interpret=True)
    return [out, *found[0]]

  return forward if which == FORWARD else both


def _decoded(name: str) -> Callable[..., list[jax.Array]]:
  """The kernel of one token on the CPU, over all tokens of a problem."""
  scale = jnp.float32(WIDTH**-0.5)

  def decode(problem):
    b, _, hv, width = problem.v.shape
    start = jnp.zeros((b, hv, width, width), TOKENS[name])

    def token(state: jax.Array, arrays: Operands):
      out, state = token_kernel.step(*arrays, scale, state, interpret=True)
      return state, out

    tokens = Operands(*(jnp.swapaxes(x, 0, 1) for x in problem[:5]))
    return [jnp.swapaxes(jax.lax.scan(token, start, tokens)[1], 0, 1)]

  return decode


def errors(
  name: str, *, tokens: int, beta_max: float, seed: int
) -> float | None:
  """The worst error of a rule's kernels, run on the CPU, over key families.

  Args:
    name: one of NAMES.
    tokens: of the problems, of one key head with two value heads.
    beta_max: beta is in 0 to this.
    seed: of the draws.

  Returns:
    |found - truth| / |truth| over all entries of the outputs, and of every
    gradient where the rule has them, the worst, against float64; None for a
    rule of another package, which is compiled only, and for one with its
    convolution, whose rule has a row of its own.
  """
  if name in (*COLUMNS, *peers.NAMES):
    return None
  dtype = "bfloat16" if name in TOKENS else RULES[name][1]
  run = jax.jit((_decoded if name in TOKENS else _interpreted)(name))
  worst = 0.0
  for family in key_families.FAMILIES:
    problem = problems.draw(
      Shape(1, tokens, 1, 2),
      dim=WIDTH,
      seed=seed,
      family=family,
      beta_max=beta_max,
    )
    truth = problems.exact(problem)
    given = problem._replace(
      **{n: getattr(problem, n).astype(dtype) for n in ("q", "k", "v", "do")}
    )
    found = run(given)
    worst = max(worst, *map(_relative, found, truth[: len(found)]))
  return worst


def _relative(found: jax.Array, truth: np.ndarray) -> float:
  wide = np.asarray(found.astype(jnp.float32), np.float64)
  return float(np.linalg.norm(wide - truth) / np.linalg.norm(truth))
