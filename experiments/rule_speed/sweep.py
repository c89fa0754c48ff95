"""Whether the rule stays finite, and gives the same bits, on hard sequences."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.rule_speed import problems
from experiments.rule_speed.problems import Problem, Shape


def swept(
  # what gives the pass of a problem, a function of its fields
  prepare: Callable[[Problem], Callable[..., Sequence[jax.Array]]],
  kinds: Sequence[tuple[str, str, float]],  # family, gates and largest beta
  *,
  sequences: int,  # drawn in all, at least, shared out over the kinds
  tokens: int,  # of each sequence
  heads: Shape,  # whose heads to take; each head of values is a sequence
  calls: int,  # of each draw, whose bits are compared
  dim: int,  # width of keys and values
  seed: int,  # of the draws
) -> Iterator[dict[str, Any]]:
  """One row a kind: entries that are not finite, calls with other bits.

  Families, gates and betas as in `problems.on_device`.
  """
  rows = -(-sequences // (len(kinds) * heads.value_heads))
  shape = heads._replace(rows=rows, tokens=tokens)
  for n, (family, gate, most) in enumerate(kinds):
    problem = problems.on_device(
      shape, family, gate, most, dim=dim, seed=seed + n
    )
    call = prepare(problem)
    first = call(*problem)
    again = (call(*problem) for _ in range(calls - 1))
    yield {
      "family": family,
      "gates": gate,
      "beta_max": most,
      "sequences": rows * shape.value_heads,
      "tokens": tokens,
      "not_finite": int(_not_finite(first)),
      "calls": calls,
      "different": sum(not _same(first, out) for out in again),
    }


@jax.jit
def _not_finite(out):
  return sum(jnp.sum(~jnp.isfinite(x.astype(jnp.float32))) for x in out)


@jax.jit
def _same(x, y):
  equal = [jnp.all(_bits(a) == _bits(b)) for a, b in zip(x, y, strict=True)]
  return jnp.all(jnp.stack(equal))


def _bits(x):
  unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  return jax.lax.bitcast_convert_type(x, unsigned)
