"""One token of a block between its projections, and its kernel's body.

The kernel's body runs in interpret mode against float64; on a card see
`experiments.model_speed`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import sharding
from neumann_jax.layers.caches.cache import Cache
from neumann_jax.layers.kernels import token_gpu
from neumann_jax.layers.one_token import token_step
from tests import oracles

TAPS, EPS = 4, 1e-6
IN_XLA = neumann_jax.RuleOptions(implementation="xla")


def problem(key_heads=2, group=2, dk=16, dv=16, dtype=np.float32, rows=2):
  """A token, weights and a cache; decays from next to none to everything."""
  rng = np.random.default_rng([key_heads, group, dk, dv])
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
  heads = key_heads * group
  columns = 2 * key_heads * dk + heads * dv
  narrow = lambda x: jnp.asarray(x, dtype)  # noqa: E731
  token = token_step.Projected(
    *(narrow(normal(rows, 1, n)) for n in (columns, heads * dv, heads, heads))
  )
  token = token._replace(
    a=narrow(np.linspace(-30, 30, rows * heads)).reshape(rows, 1, heads)
  )
  weights = token_step.Weights(
    narrow(normal(TAPS, columns)),
    jnp.asarray(normal(heads) - 3),
    jnp.asarray(normal(heads)),
    narrow(normal(dv)),
  )
  cache = Cache(
    narrow(normal(rows, columns, TAPS)),
    jnp.asarray(normal(rows, heads, dk, dv)),
  )
  return token, weights, cache


def exact(token, weights, cache, key_heads, beta_max):
  """In float64, a head at a time."""
  wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)  # noqa: E731
  token, weights, cache = wide(token), wide(weights), wide(cache)
  history = np.concatenate(
    [cache.conv_state[..., 1:], np.swapaxes(token.qkv, 1, 2)], axis=2
  )
  columns = np.sum(history * weights.conv.T, axis=2)
  columns = columns / (1 + np.exp(-columns))
  state = cache.recurrent_state.copy()
  rows, heads, dk, dv = state.shape
  out = np.zeros((rows, heads, dv))
  unit = lambda x: x / np.sqrt(np.sum(x**2) + 1e-6)  # noqa: E731
  for row, head in np.ndindex(rows, heads):
    key = head // (heads // key_heads)
    q, k = (unit(columns[row, (n + key) * dk :][:dk]) for n in (0, key_heads))
    v = columns[row, 2 * key_heads * dk + head * dv :][:dv]
    beta = beta_max / (1 + np.exp(-token.b[row, 0, head]))
    step = np.logaddexp(token.a[row, 0, head] + weights.dt_bias[head], 0)
    s = np.exp(-np.exp(weights.a_log[head]) * step) * state[row, head]
    s = s + np.outer(k, beta * (v - k @ s))
    state[row, head], y = s, dk**-0.5 * (q @ s)
    y = y / np.sqrt(np.mean(y**2) + EPS) * weights.norm
    z = token.z[row, 0, head * dv :][:dv]
    out[row, head] = y * z / (1 + np.exp(-z))
  return out.reshape(rows, 1, -1), Cache(history, state)


@functools.partial(oracles.quick_jit, static_argnames=("key_heads", "beta_max"))
def by_kernel(token, weights, cache, mask, key_heads, beta_max=1.0):
  live = np.ones(len(token.b), np.int32) if mask is None else mask
  y, *new = token_gpu.step(
    *(x[:, 0] for x in token),
    live,
    *weights,
    *cache,
    key_heads=key_heads,
    beta_max=beta_max,
    eps=EPS,
    interpret=True,
  )
  return y[:, None], Cache(*new)


@functools.partial(oracles.quick_jit, static_argnames=("key_heads", "beta_max"))
def by_xla(token, weights, cache, mask, key_heads, beta_max=1.0):
  mask = None if mask is None else mask[:, None] != 0
  block = token_step.Block(key_heads, beta_max, EPS)
  return token_step.step(IN_XLA, block, token, weights, cache, mask)


# Rounding of what float32 holds, and of bfloat16 once the sums are taken.
LIMITS = {"float32": 2e-6, "bfloat16": 1.5e-2}


@pytest.mark.parametrize("form", [by_kernel, by_xla])
@pytest.mark.parametrize(
  ("dtype", "sizes", "beta_max"),
  [
    ("float32", (2, 2, 16, 16), 2.0),
    ("float32", (2, 1, 32, 16), 1.0),
    ("bfloat16", (1, 4, 32, 16), 1.0),
  ],
)
def test_a_token_is_the_float64_token(form, dtype, sizes, beta_max):
  args = problem(*sizes, dtype)
  found = form(*args, None, sizes[0], beta_max)
  want = exact(*args, sizes[0], beta_max)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    assert oracles.error(np.float32(x), y) < LIMITS[dtype]
  # Columns are kept as they came.
  np.testing.assert_array_equal(
    np.float64(found[1].conv_state), want[1].conv_state
  )


@pytest.mark.parametrize("form", [by_kernel, by_xla])
def test_padding_leaves_the_cache_alone(form):
  token, weights, cache = problem()
  # What stands at padding is zeros, of which the projections make zeros.
  token = jax.tree.map(lambda x: x.at[1].set(0), token)
  y, new = form(token, weights, cache, jnp.asarray([1, 0]), 2)
  want, moved = form(token, weights, cache, jnp.asarray([1, 1]), 2)
  assert (y[1] == 0).all()
  for x, before, after in zip(new, cache, moved, strict=True):
    np.testing.assert_array_equal(x[1], before[1])
    oracles.assert_close(x[0], after[0], 1e-6)
  oracles.assert_close(y[0], want[0], 1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("split", ["token", "weights", "state"])
def test_what_is_split_may_be_any_operand(split, masked):
  """Inside `jax.shard_map`, the rest being the same on every device."""
  mesh = sharding.make_mesh(data=2)
  token, weights, cache = problem()
  mask = jnp.ones((2, 1), bool) if masked else None
  block = token_step.Block(2, 1.0, EPS)
  want = token_step.step(IN_XLA, block, token, weights, cache, mask)

  def one(x, token, weights, cache, mask):
    # Each device has all, of which one operand is known to vary.
    add = lambda tree: jax.tree.map(lambda y: y + 0 * x.astype(y.dtype), tree)  # noqa: E731
    if split == "token":
      token = add(token)
    elif split == "weights":
      weights = add(weights)
    else:
      cache = cache._replace(recurrent_state=add(cache.recurrent_state))
    found = token_step.step(
      neumann_jax.RuleOptions(), block, token, weights, cache, mask
    )
    return jax.tree.map(lambda y: y[None], found)

  call = jax.shard_map(
    one,
    mesh=mesh,
    in_specs=(jax.P("data"), *[jax.P()] * 4),
    out_specs=jax.P("data"),
  )
  found = jax.jit(call)(jnp.zeros(2), token, weights, cache, mask)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    oracles.assert_close(x[1], y, 1e-6)


def test_a_step_of_decoding_is_one_kernel_between_projections_on_cuda():
  config = neumann_jax.ModelConfig(
    hidden_size=16, num_hidden_layers=1, vocab_size=8
  )
  model = nnx.eval_shape(
    lambda: neumann_jax.LanguageModel(config, rngs=nnx.Rngs(0))
  )
  graph, state = nnx.split(model)

  def step(state, token, cache):
    return nnx.merge(graph, state)(token, cache=cache)

  cache = jax.eval_shape(lambda: model.init_cache(2, 8))
  args = state, jnp.zeros((2, 1), jnp.int32), cache
  with oracles.on_a_gpu():
    traced = jax.jit(step).trace(*args)
    module = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert module.count("neumann_token") >= 1
  # The projections, the feed-forward layer and the logits; no state's product.
  assert module.count("dot_general") == 4 + 1 + 3 + 1
  other = jax.jit(step).trace(*args).lower(lowering_platforms=("cpu",))
  assert "neumann_token" not in other.as_text()


@pytest.mark.parametrize(
  ("sizes", "dtype", "sentence"),
  [
    ((2, 3, 16, 16), "float32", "Hv / Hk must be a power of two, got 3"),
    ((2, 1, 24, 16), "float32", "Dk must be a power of two, got 24"),
    ((2, 1, 8, 16), "float32", "got 8 x 16"),
    ((2, 1, 256, 128), "float32", "got 256 x 128"),
    ((1, 4, 128, 128), "float32", "fewer, got Hv / Hk = 4"),
    ((1, 4, 16, 64), "float32", "columns of values must start"),
    ((2, 1, 16, 16), "float64", "32 bits or fewer, got float64"),
  ],
)
def test_what_the_kernel_refuses(sizes, dtype, sentence):
  _, weights, cache = problem(*sizes, rows=1)
  found = token_gpu.refusal(
    sizes[0], jnp.dtype(dtype), weights.conv, cache.recurrent_state
  )
  assert sentence in found
