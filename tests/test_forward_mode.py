"""Forward-mode derivatives: of the rule, the inverse and a whole model.

Each is compared with a reverse-mode one along the same direction, of the
float64 oracle where there is one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec
from tests import models, oracles
from tests.oracles import Problem
from tests.test_delta_rule_gradients import cotangents, oracle_gradients

short_chunks = functools.partial(neumann_jax.gated_delta_rule, chunk_size=16)
FORMS = {
  "auto": short_chunks,
  "xla": functools.partial(short_chunks, implementation="xla"),
  "fused": functools.partial(short_chunks, fused=True),
  "interpret": functools.partial(
    short_chunks, fused=True, implementation="interpret"
  ),
  "recurrent": neumann_jax.gated_delta_recurrent,
}


def along(like, seed=5):
  """A direction for every array of a tree."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), like
  )


def inner(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return sum(np.vdot(np.float64(x), np.float64(y)) for x, y in pairs)


SLOW = ("auto", "interpret")  # what "xla" and "fused" do, compiled for longer
INTEGERS = InverseSpec(quant=QuantSpec(8, "dynamic", integer=True))


@pytest.mark.parametrize(
  "form, packed",
  [
    pytest.param(
      *(x, packed),
      marks=pytest.mark.slow
      if x in SLOW or (x, packed) == ("fused", False)
      else (),
    )
    for x in FORMS
    for packed in (False, True)
  ],
)
def test_the_rule(form, packed):
  p = Problem(*map(jnp.asarray, oracles.problem(40)))
  ids = oracles.documents(40) if packed else None
  rule = lambda p: p.under(FORMS[form], ids)  # noqa: E731
  direction = along(p)
  tangents = oracles.quick_jit(lambda p, t: jax.jvp(rule, (p,), (t,))[1])(
    p, direction
  )
  want = inner(oracle_gradients(p, ids), direction)
  assert inner(cotangents(p), tangents) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
  "spec, gradient",
  [
    (InverseSpec(), "truncated"),
    (InverseSpec(precision="bfloat16"), "implicit"),
    (INTEGERS, "implicit"),
    (InverseSpec("exact"), "implicit"),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (InverseSpec(), "implicit"),
        (InverseSpec(precision="bfloat16"), "truncated"),
        (INTEGERS, "truncated"),
        (InverseSpec("exact"), "truncated"),
      )
    ),
  ],
)
def test_the_inverse(spec, gradient):
  rng = np.random.default_rng(0)
  a = jnp.asarray(rng.standard_normal((3, 16, 16)) / 4, jnp.float32)
  f = functools.partial(neumann_jax.inverse, spec=spec, gradient=gradient)
  direction, g = along(a), along(a, seed=6)

  @oracles.quick_jit
  def both(a):
    tangent = jax.jvp(f, (a,), (direction,))[1]
    return tangent, jax.vjp(f, a)[1](g)[0]

  tangent, gradient = both(a)
  want = inner(gradient, direction)
  assert inner(g, tangent) == pytest.approx(want, rel=1e-4)


def layer_beside_no_kernel():
  """Documents with states of their own, and matrices without the rule."""
  config = neumann_jax.ModelConfig(
    hidden_size=16,
    linear_num_key_heads=1,
    linear_num_value_heads=1,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
  )
  rule = neumann_jax.RuleOptions(fused=True)
  execution = neumann_jax.Execution(rule=rule)
  with models.drawn_by_numpy():
    layer = neumann_jax.GatedDeltaNet(config, execution, rngs=nnx.Rngs(0))
  graph, state = nnx.split(layer)
  ids = jnp.asarray([[0] * 5 + [1] * 4])

  def run(x):
    block = nnx.merge(graph, state)
    cache = block.init_cache(2)  # a row for each document
    out, _ = block(x, cache=cache, segment_ids=ids)
    return out, block.chunk_matrices(x, segment_ids=ids).a

  return run, along(jnp.zeros((1, 9, 16)), seed=7)


def test_a_layer_beside_a_rule_that_is_no_kernel_has_tangents():
  run, x = layer_beside_no_kernel()
  call = jax.jit(lambda x: jax.jvp(run, (x,), (x,)))
  # What has no tangent is refused when it is lowered, not when it is traced.
  values, tangents = call.lower(x).out_info
  assert tangents == values


@pytest.mark.slow
def test_a_layer_beside_a_rule_that_is_no_kernel():
  run, x = layer_beside_no_kernel()
  direction = along(x)

  @oracles.quick_jit
  def both(x):
    values, tangents = jax.jvp(run, (x,), (direction,))
    g = along(values, seed=6)
    return g, tangents, jax.vjp(run, x)[1](g)[0]

  g, tangents, gradient = both(x)
  want = inner(gradient, direction)
  assert inner(g, tangents) == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_model(kind):
  graph, state = nnx.split(models.trained_like(kind))
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 24)))

  @oracles.quick_jit
  def both(state, direction):
    loss = lambda state: jnp.mean(  # noqa: E731
      nnx.merge(graph, state)(tokens)[0] ** 2
    )
    return (
      jax.jvp(loss, (state,), (direction,))[1],
      jax.grad(loss)(state),
    )

  direction = along(state)
  slope, gradient = both(state, direction)
  assert float(slope) == pytest.approx(inner(gradient, direction), rel=1e-3)
