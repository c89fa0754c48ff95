"""Layers whose tokens are split: convolution, block and attention."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import sequence_axis
from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from neumann_jax.layers import head_columns
from neumann_jax.layers.convolution.short_conv import short_conv
from tests import float64_rule, models, oracles
from tests.oracles import assert_close
from tests.over_shards import TOKENS, over, sharded


@pytest.mark.parametrize("width, shards", [(1, 8), (2, 8), (4, 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_convolution_reaches_into_the_shard_before(width, shards, packed):
  """Shards down to W tokens; values, the new history, and derivatives."""
  rng = np.random.default_rng([width, packed])
  x, taps, history = (
    rng.standard_normal(shape).astype(np.float32)
    for shape in ((3, 16, 5), (width, 5), (3, 5, width))
  )
  ids = None
  if packed:
    ids = np.cumsum(rng.integers(0, 4, (3, 16)) // 3, 1).astype(np.int32)

  def split(x, taps, history):
    conv = functools.partial(short_conv, axis_name="tokens")
    form = over(
      shards,
      lambda x, taps, h, i: conv(x, taps, history=h, segment_ids=i),
      (TOKENS, P(), P(), TOKENS),
      (TOKENS, P()),
    )
    return form(x, taps, history, ids)

  def whole(x, taps, history):
    return short_conv(x, taps, history=history, segment_ids=ids)

  g = tuple(
    rng.standard_normal(s).astype(np.float32) for s in (x.shape, history.shape)
  )

  @functools.partial(oracles.quick_jit, static_argnums=0)
  def run(form, *arrays):
    values, pull = jax.vjp(form, *arrays)
    return values, pull(g)

  found, one = run(split, x, taps, history), run(whole, x, taps, history)
  assert_close(found, one, 1e-6)
  y, kept = float64_rule.causal_conv(x, taps, ids, history.swapaxes(1, 2))
  assert_close(found[0], (y, kept.swapaxes(1, 2)), 1e-6)


@pytest.mark.slow
def test_columns_of_heads_by_kernels_reach_into_the_shard_before():
  """As the convolution does, and no document's into another's shard."""
  rng = np.random.default_rng(0)
  parts = (head_columns.Part(1, normed=True),)
  x, taps, history, g = (
    jnp.asarray(np.float32(rng.standard_normal(shape)))
    for shape in ((2, 32, 128), (4, 128), (2, 128, 4), (2, 32, 1, 128))
  )
  # The second row comes back to 0 right before a shard's border.
  ids = [[0] * 7 + [1] * 12 + [2] * 13, [0] * 6 + [1] + [0] * 9 + [1] * 16]
  ids = jnp.asarray(ids)
  g = (g,), jnp.ones_like(history)

  def columns(axis, x, taps, history, ids):
    how = neumann_jax.RuleOptions(
      fused=True, implementation="interpret", sequence_axis=axis
    )
    return head_columns.columns(
      how, parts, x, taps, history=history, segment_ids=ids, axis=None
    )

  @functools.partial(oracles.quick_jit, static_argnums=0)
  def run(form, *arrays):
    values, pull = jax.vjp(lambda *arrays: form(*arrays, ids), *arrays)
    return values, pull(g)

  split = over(
    4,
    functools.partial(columns, "tokens"),
    (TOKENS, P(), P(), TOKENS),
    ((TOKENS,), P()),
  )
  found = run(split, x, taps, history)
  one = run(functools.partial(columns, None), x, taps, history)
  assert_close(found, one, 2e-6)


# --- The block ---------------------------------------------------------------

HIDDEN = models.BLOCK["hidden_size"]


def blocks(**options):
  """The same block for split tokens and for one device."""
  options = {
    "linear_conv_kernel_dim": 4,
    "chunk_size": 16,
    "decay_init": "slow",
  } | options
  return (
    models.delta_net(sequence_axis=axis, **options) for axis in ("tokens", None)
  )


def hidden_states(*shape, seed=1):
  x = np.random.default_rng(seed).standard_normal((*shape, HIDDEN))
  return x.astype(np.float32)


def on(shards, layer):
  """A call of the layer as (params, x, cache, ids) -> (y, cache)."""
  graph, _ = nnx.split(layer)

  def call(state, x, cache, ids):
    return nnx.merge(graph, state)(x, cache=cache, segment_ids=ids)

  if shards is None:
    return call
  return over(shards, call, (P(), TOKENS, P(), TOKENS), (TOKENS, P()))


@pytest.mark.parametrize(
  "shards, length", [(8, 32), pytest.param(4, 64, marks=pytest.mark.slow)]
)
def test_block_is_that_of_one_device(shards, length):
  """A cache in and out, documents, all gradients: parameters, x and cache."""
  many, one = blocks()
  state = nnx.split(one)[1]
  x, ids = hidden_states(2, length), np.zeros((2, length), np.int32)
  ids[0], ids[1] = np.arange(length) // 11, np.arange(length) > 5
  rng = np.random.default_rng(3)
  draw = lambda a: rng.standard_normal(a.shape).astype(np.float32)  # noqa: E731
  cache, g_cache = (jax.tree.map(draw, one.init_cache(2)) for _ in range(2))
  g_y = draw(x)

  @functools.partial(oracles.quick_jit, static_argnums=0)
  def run(form, *arrays):
    call = lambda state, x, cache: form(state, x, cache, ids)  # noqa: E731
    values, pull = jax.vjp(call, *arrays)
    return values, pull((g_y, g_cache))

  found = run(on(shards, many), state, x, cache)
  want = run(on(None, one), state, x, cache)
  assert_close(found[0], want[0], oracles.FLOAT32_BLOCK)
  assert_close(found[1], want[1], oracles.FLOAT32_RULE_GRADIENT)
  assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(found))
  chex.assert_trees_all_equal_shapes_and_dtypes(found[0], want[0])


# --- Attention ---------------------------------------------------------------


def attend(q, k, v, ids, first):
  """Causal softmax attention; q at positions first, first + 1, ..."""
  scores = jnp.einsum("bthd,bshd->bhts", q, k[:, :, :]) * q.shape[-1] ** -0.5
  query = first + jnp.arange(q.shape[1])
  seen = query[:, None] >= jnp.arange(k.shape[1])
  own = lax.dynamic_slice_in_dim(ids, first, q.shape[1], 1)
  seen = seen & (own[:, :, None] == ids[:, None])
  scores = jnp.where(seen[:, None], scores, -jnp.inf)
  return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1), v)


def test_attention_over_gathered_keys():
  """Values against float64, derivatives against one device."""
  q, k, v, g = np.random.default_rng(0).standard_normal((4, 2, 32, 3, 8))
  k[:, 8:] = k[:, :1]  # keys that repeat over shards
  ids = np.repeat(np.int32([[0, 1], [2, 3]]), [19, 13], 1)
  q, k, v, g = np.float32([q, k, v, g])

  def here(q, k, v, ids):
    gather = functools.partial(sequence_axis.gather_tokens, axis_name="tokens")
    first = sequence_axis.token_offset(q.shape[1], "tokens")
    return attend(q, *map(gather, (k, v, ids)), first)

  def split(q, k, v):
    return over(8, here, (TOKENS,) * 4, TOKENS)(q, k, v, ids)

  def whole(q, k, v):
    return attend(q, k, v, ids, 0)

  @functools.partial(oracles.quick_jit, static_argnums=0)
  def run(form, *arrays):
    y, pull = jax.vjp(form, *arrays)
    return y, pull(g)

  found, one = run(split, q, k, v), run(whole, q, k, v)
  assert_close(found, one, 1e-5)
  weights = np.exp(np.einsum("bthd,bshd->bhts", *np.float64([q, k])) / 8**0.5)
  weights *= np.tril(ids[:, :, None] == ids[:, None])[:, None]
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum("bhts,bshd->bthd", weights, np.float64(v))
  assert_close(found[0], want, 1e-5)


def test_offsets_are_positions():
  def positions(x):
    return sequence_axis.token_offset(x.shape[0], "tokens") + jnp.arange(
      x.shape[0]
    )

  found = over(4, positions, P("tokens"), P("tokens"))(jnp.zeros(20))
  chex.assert_trees_all_equal(np.asarray(found), np.arange(20, dtype=np.int32))


def test_an_axis_that_is_not_there():
  p, many = oracles.problem(8), next(iter(blocks()))
  x = hidden_states(2, 8)
  for call in (
    lambda: sharded_delta_rule(*p[:5], axis_name="tokens"),
    lambda: many(x),
    lambda: many.chunk_matrices(x),
    lambda: sequence_axis.token_offset(8, "tokens"),
    lambda: sequence_axis.gather_tokens(x, "tokens"),
  ):
    with oracles.refused(ValueError, "'tokens' is unknown .* jax.shard_map"):
      call()
  with oracles.refused(ValueError, "axis 'heads' is unknown here"):
    sharded(p, shards=4, axis_name="heads")


def test_a_shard_shorter_than_the_convolution():
  many, one = blocks()
  with oracles.refused(ValueError, "at least the 4 tokens .* got 3"):
    on(4, many)(nnx.split(one)[1], hidden_states(2, 12), None, None)


def test_padding_masks():
  many, _ = blocks()
  x, mask = hidden_states(2, 16), np.ones((2, 16), bool)
  call = over(
    4, lambda x, mask: many(x, mask=mask)[0], (TOKENS, TOKENS), TOKENS
  )
  with oracles.refused(ValueError, "mask cannot be given .* 'tokens' splits"):
    call(x, mask)
