"""Operands of attention and its form in XLA, for the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from neumann_jax.layers import call_attention

MESH_AXES = (("data", "fsdp"), "tensor")


def operands(length, dim=128, rows=1, heads=(4, 2), dtype=jnp.bfloat16):
  rng = np.random.default_rng([length, dim])
  draw = lambda n: jnp.asarray(  # noqa: E731
    rng.standard_normal((rows, length, n, dim)), dtype
  )
  return draw(heads[0]), draw(heads[1]), draw(heads[1])


in_blocks = jax.jit(functools.partial(call_attention.in_blocks, query_block=64))
