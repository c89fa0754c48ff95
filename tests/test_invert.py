"""The public inverse: gradients, transformations, dispatch, bad input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import key_families
from neumann_jax.chunk_inverse import api as ni
from neumann_jax.chunk_inverse import bounds, masks, xla
from neumann_jax.chunk_inverse.integer import QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from tests import oracles


def problem(family="cosine_0.5", chunk_size=32, count=3, beta=(0.6, 1.0)):
  c = key_families.draw(
    family, seed=0, count=count, chunk_size=chunk_size, beta=beta
  )
  rng = np.random.default_rng(1)
  g = rng.standard_normal(c.a.shape)
  return np.float32(c.a), np.float32(g)


@functools.partial(oracles.quick_jit, static_argnames=("spec", "gradient"))
def pulled(a, g, spec, gradient):
  """The cotangent of a, of one program for matrices of all families."""
  _, vjp = jax.vjp(lambda a: ni.inverse(a, spec, gradient=gradient), a)
  return vjp(g)[0]


@pytest.mark.parametrize("family", key_families.FAMILIES)
@pytest.mark.parametrize(
  "spec",
  [
    InverseSpec("exact"),
    InverseSpec("ladder"),
    InverseSpec("newton"),
    InverseSpec("banded", order=3, residual_steps=8, mask_every_step=True),
  ],
)
@pytest.mark.parametrize("gradient", ["implicit", "truncated"])
def test_gradient_of_exact_forms(spec, family, gradient):
  """-T^t G T^t on the strictly lower part, in float64."""
  a, g = problem(family)
  found = pulled(a, g, spec=spec, gradient=gradient)
  t = key_families.exact_inverse(a)
  tt = np.swapaxes(t, -1, -2)
  want = -np.tril(tt @ g.astype(np.float64) @ tt, -1)
  scale = np.abs(want).max()
  assert np.abs(found - want).max() <= 1e-5 * scale


@pytest.mark.parametrize(
  "spec",
  [
    InverseSpec("banded", order=4, residual_steps=3),
    InverseSpec("banded", order=2, residual_steps=3, mask_every_step=True),
    InverseSpec("newton", order=2, residual_steps=2),
    InverseSpec("doubling", block=8),
  ],
)
def test_truncated_gradient_is_that_of_the_computed_polynomial(spec):
  """Against central differences of the float64 polynomial."""
  a, g = problem("cosine_0.3", count=1)
  a = a * np.float32(0.5)
  with jax.enable_x64(True):
    a64, g64 = jnp.asarray(a[0], jnp.float64), np.asarray(g[0], np.float64)
    run = jax.jit(lambda a: xla.invert(resolve(spec, a.shape[-1]), a))
    i, j = np.tril_indices(32, -1)
    picks = np.random.default_rng(0).choice(len(i), 12, replace=False)
    want, h = [], 1e-5
    for p in picks:
      step = np.zeros((32, 32))
      step[i[p], j[p]] = h
      slope = (np.asarray(run(a64 + step)) - np.asarray(run(a64 - step))) / 2
      want.append((slope / h * g64).sum())
  got = np.asarray(pulled(a[0], g[0], spec=spec, gradient="truncated"))
  chex.assert_trees_all_close(
    got[i[picks], j[picks]].astype(np.float64),
    np.array(want),
    atol=2e-5 * np.abs(want).max(),
  )


def test_the_two_gradients_differ_where_truncation_matters():
  a, g = problem("cosine_0.5")
  spec = InverseSpec("newton", order=3, residual_steps=1)
  grads = [
    np.asarray(pulled(a, g, spec=spec, gradient=name))
    for name in ("implicit", "truncated")
  ]
  assert np.abs(grads[0] - grads[1]).max() > 1e-2
  # The truncated form cannot depend on entries that its band never read.
  t = np.asarray(ni.inverse(jnp.asarray(a), spec))
  want = -np.tril(np.swapaxes(t, -1, -2) @ g @ np.swapaxes(t, -1, -2), -1)
  chex.assert_trees_all_close(grads[0], want, atol=1e-3)


@pytest.mark.parametrize("gradient", ["implicit", "truncated"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_low_precision_gradients_stay_near_the_exact_one(precision, gradient):
  form = {"precision": "bfloat16"}
  if precision == "int8":
    form = {"quant": QuantSpec(8, "dynamic")}
  a, g = problem("cosine_0.5")
  tt = np.swapaxes(key_families.exact_inverse(a), -1, -2)
  want = -np.tril(tt @ g.astype(np.float64) @ tt, -1)
  got = pulled(a, g, spec=InverseSpec(**form), gradient=gradient)
  assert np.linalg.norm(got - want) <= 0.1 * np.linalg.norm(want)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_output_has_the_input_dtype(dtype):
  a, _ = problem()
  x = ni.inverse(jnp.asarray(a, dtype))
  assert x.dtype == dtype
  truth = key_families.exact_inverse(np.asarray(jnp.asarray(a, dtype), float))
  tolerance = float(jnp.finfo(dtype).eps)
  assert np.abs(np.asarray(x, np.float64) - truth).max() <= 4 * tolerance


def test_float64_input_is_computed_in_float64():
  a, _ = problem(chunk_size=64)
  with jax.enable_x64(True):
    x = ni.inverse(jnp.asarray(a, jnp.float64))
    assert x.dtype == jnp.float64
    error = np.abs(np.asarray(x) - key_families.exact_inverse(a)).max()
  assert error < 1e-13


def test_transformations_agree_with_the_plain_call():
  a, g = problem(chunk_size=16, count=4)
  a, g = jnp.asarray(a), jnp.asarray(g)
  plain = ni.inverse(a)
  chex.assert_trees_all_equal(jax.jit(ni.inverse)(a), plain)
  chex.assert_trees_all_close(jax.vmap(ni.inverse)(a), plain, atol=1e-6)
  _, scanned = jax.lax.scan(lambda c, x: (c, ni.inverse(x)), 0, a)
  chex.assert_trees_all_close(scanned, plain, atol=1e-6)

  def loss(f):
    return jax.grad(lambda a: jnp.sum(f(a) * g))(a)

  chex.assert_trees_all_close(
    loss(jax.checkpoint(ni.inverse)), loss(ni.inverse), atol=1e-6
  )
  wide = ni.inverse(a.reshape(2, 1, 2, 16, 16))
  chex.assert_trees_all_close(wide.reshape(a.shape), plain, atol=1e-6)


def test_sharded_over_the_batch():
  devices = jax.devices("cpu")
  assert len(devices) == 8
  mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
  spec = jax.sharding.PartitionSpec("batch")
  a, _ = problem(chunk_size=16, count=8)
  run = jax.jit(
    jax.shard_map(ni.inverse, mesh=mesh, in_specs=spec, out_specs=spec)
  )
  chex.assert_trees_all_close(
    run(jnp.asarray(a)), ni.inverse(jnp.asarray(a)), atol=1e-6
  )


def test_same_bits_and_one_trace():
  traced = chex.assert_max_traces(ni.inverse, n=1)
  run = jax.jit(traced)
  outs = [run(jnp.asarray(problem(count=3)[0])) for _ in range(2)]
  chex.assert_trees_all_equal(*outs)
  run(jnp.asarray(problem("rank_4")[0]))


def test_envelope_sets_the_integer_scale():
  """Without it, entries of up to 2 saturate at 1; with it they do not."""
  a, _ = problem("identical", 64, beta=(1.9, 2.0))
  c = key_families.draw(
    "identical", seed=0, count=3, chunk_size=64, beta=(1.9, 2.0)
  )
  e = bounds.envelope(jnp.float32(c.beta), jnp.float32(c.log_decay))
  spec = InverseSpec(quant=QuantSpec(16, "envelope"))
  truth = key_families.exact_inverse(a)
  with_e = ni.inverse(jnp.asarray(a), spec, envelope=e)
  without = ni.inverse(jnp.asarray(a), spec)
  assert key_families.relative_error(with_e, truth).max() < 1e-2
  assert key_families.relative_error(without, truth).max() > 0.1


@pytest.mark.parametrize(
  "a, kwargs, error, sentence",
  [
    (jnp.zeros((16, 16), jnp.int32), {}, TypeError, "a must be floating poi"),
    (jnp.zeros(16), {}, ValueError, r"a must have shape \[..., C, C\]"),
    (jnp.zeros((16, 8)), {}, ValueError, r"a must have shape \[..., C, C\]"),
    (jnp.zeros((12, 12)), {}, ValueError, "chunk_size must be a power of two"),
    (
      jnp.zeros((16, 16)),
      {"envelope": jnp.ones((8, 8))},
      ValueError,
      "envelope must have the shape of a",
    ),
    (
      jnp.zeros((16, 16)),
      {"gradient": "exact"},
      ValueError,
      'gradient must be "implicit" or "truncated"',
    ),
    (
      jnp.zeros((16, 16)),
      {"implementation": "cuda"},
      ValueError,
      "implementation must be one of auto, tpu, gpu, xla, interpret",
    ),
  ],
)
def test_bad_input_is_refused(a, kwargs, error, sentence):
  with pytest.raises(error, match=sentence):
    ni.inverse(a, **kwargs)
  with pytest.raises(error, match=sentence):
    jax.eval_shape(functools.partial(ni.inverse, **kwargs), a)


@pytest.mark.parametrize("c", [2, 16, 64])
def test_masks_by_their_definitions(c):
  i, j = np.indices((c, c))
  chex.assert_trees_all_equal(np.asarray(masks.strictly_lower(c)), i > j)
  for width in (0, 1, 5):
    want = (i >= j) & (i - j <= width)
    chex.assert_trees_all_equal(masks.in_band(i, j, width), want)
  for level in range(c.bit_length() - 1):
    size = 2**level
    blocks = i // size == j // size
    chex.assert_trees_all_equal(masks.same_block(i, j, level), blocks)
    joined = (i // (2 * size) == j // (2 * size)) & (i // size > j // size)
    chex.assert_trees_all_equal(masks.joined(i, j, level), joined)


def test_decay_matrix_keeps_its_digits_after_a_hard_reset():
  """Differences of cumulative sums would lose them: G ~ -1300 here."""
  rng = np.random.default_rng(0)
  g = -rng.exponential(0.05, 64)
  g[3:63:3] = -65.0
  total = np.cumsum(np.float32(g).astype(np.float64))
  want = np.exp(np.tril(total[:, None] - total)) * np.tri(64)
  got = np.asarray(masks.decay_matrix(jnp.float32(g)), np.float64)
  chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-12)
  naive = np.float32(total)
  loss = np.abs(np.exp(np.tril(naive[:, None] - naive)) * np.tri(64) - want)
  assert loss.max() > 1e-5  # why it is not computed that way


def test_decay_matrix_segments_and_gradients():
  g = jnp.array([-0.5, -jnp.inf, -0.1, -0.2], jnp.float32)
  seg = jnp.array([0, 0, 1, 1])
  d = np.asarray(masks.decay_matrix(g, seg))
  want = np.eye(4, dtype=np.float32)
  want[3, 2] = np.exp(np.float32(-0.2))
  chex.assert_trees_all_close(d, want, atol=1e-7)
  slope = jax.grad(lambda g: masks.decay_matrix(g, seg).sum())(g)
  chex.assert_tree_all_finite(slope)
  chex.assert_trees_all_close(
    np.asarray(slope), np.array([0, 0, 0, np.exp(-0.2)], np.float32), atol=1e-6
  )


@pytest.mark.parametrize(
  ("call", "error", "sentence"),
  [
    (lambda a: ni.inverse([[0.0]]), TypeError, "a must be an array, got list"),
    (
      lambda a: ni.inverse(a, "ladder"),
      TypeError,
      "spec must be an InverseSpec",
    ),
    (
      lambda a: ni.inverse(a, envelope=jnp.ones((5, 16, 16))),
      ValueError,
      "envelope must have the shape of a",
    ),
    (
      lambda a: ni.inverse(a, InverseSpec("banded", block=8)),
      ValueError,
      "no default at chunk size 8",
    ),
    (lambda a: InverseSpec(quant="int8"), ValueError, "must be a QuantSpec"),
    (
      lambda a: InverseSpec("newton", order=2.0),
      ValueError,
      "order must be an integer or None, got 2.0",
    ),
  ],
)
def test_wrong_kinds_are_one_sentence(call, error, sentence):
  with pytest.raises(error, match=sentence) as caught:
    call(jnp.zeros((16, 16)))
  assert "\n" not in str(caught.value)
