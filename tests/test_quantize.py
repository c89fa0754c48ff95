"""Codes, scales, exact code products and straight-through gradients."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import key_families
from neumann_jax.chunk_inverse import integer as quantize
from neumann_jax.chunk_inverse import products, xla
from neumann_jax.chunk_inverse.integer import QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve

BITS = (4, 8, 16)
Q = {4: 7, 8: 127, 16: 32639}


@pytest.mark.parametrize("bits", BITS)
def test_codes_by_their_definition(bits):
  rng = np.random.default_rng(bits)
  x = rng.standard_normal((5, 7)).astype(np.float32)
  scale = np.float32(2.0) / np.float32(Q[bits])
  want = np.clip(np.floor(x / scale + np.float32(0.5)), -Q[bits], Q[bits])
  got = quantize.codes(jnp.asarray(x), jnp.float32(scale), bits=bits)
  chex.assert_trees_all_equal(np.asarray(got), want.astype(np.float32))
  assert QuantSpec(bits).largest_code == Q[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("axis", [-1, -2])
def test_dynamic_scale_uses_the_whole_range(bits, axis):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 8, 8)).astype(np.float32) * 10
  scale = quantize.dynamic_scale(jnp.asarray(x), axis=axis, bits=bits)
  n = np.asarray(quantize.codes(jnp.asarray(x), scale, bits=bits))
  assert (np.abs(n).max(axis) == Q[bits]).all()
  # Half a code, and the rounding of x / s.
  error = np.abs(n * np.asarray(scale) - x)
  assert (error <= np.asarray(scale) * (0.5 + 1e-2)).all()
  zero = quantize.dynamic_scale(jnp.zeros((2, 2)), axis=axis, bits=bits)
  assert (np.asarray(zero) > 0).all()
  zeros = quantize.codes(jnp.zeros((2, 2)), zero, bits=bits)
  chex.assert_trees_all_equal(np.asarray(zeros), np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_code_product_is_exact(bits, integer):
  rng = np.random.default_rng(1)
  a = rng.integers(-Q[bits], Q[bits] + 1, (2, 128, 128))
  b = rng.integers(-Q[bits], Q[bits] + 1, (2, 128, 128))
  a[0], b[0] = Q[bits], -Q[bits]  # the largest sums there are
  got = quantize.code_product(
    jnp.float32(a), jnp.float32(b), QuantSpec(bits, integer=integer)
  )
  chex.assert_trees_all_equal(np.asarray(got, np.int64), a @ b)


@pytest.mark.parametrize("integer", [False, True])
def test_limb_product_by_its_definition(integer):
  """((hh * 256) + (hl + lh)) * 256 + ll, exact sums, float32 combination."""
  rng = np.random.default_rng(2)
  a = rng.integers(-Q[16], Q[16] + 1, (2, 128, 128))
  b = rng.integers(-Q[16], Q[16] + 1, (2, 128, 128))
  a[0], b[0] = Q[16], Q[16]
  (ah, al), (bh, bl) = (((n + 128) // 256, n) for n in (a, b))
  al, bl = al - 256 * ah, bl - 256 * bh
  for limb in (ah, al, bh, bl):
    assert -128 <= limb.min() and limb.max() <= 127
  f = np.float32
  want = f(f(f(ah @ bh) * f(256)) + f(ah @ bl + al @ bh)) * f(256) + f(al @ bl)
  got = quantize.code_product(
    jnp.float32(a), jnp.float32(b), QuantSpec(16, integer=integer)
  )
  chex.assert_trees_all_equal(np.asarray(got), want)
  # Two float32 roundings away from the exact product of codes.
  largest = np.abs(a @ b).max()
  assert np.abs(np.asarray(got, np.float64) - a @ b).max() <= 2e-7 * largest


# Every method, every number of bits and both scales.
QUICK = (
  *(("ladder", 4, "envelope", 32), ("ladder", 16, "dynamic", 32)),
  *(("newton", 8, "envelope", 32), ("banded", 8, "dynamic", 32)),
)


@pytest.mark.parametrize(
  ("method", "bits", "scale", "chunk_size"),
  [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in itertools.product(
      *(("ladder", "newton", "banded"), BITS, ("envelope", "dynamic"), (32, 64))
    )
  ],
)
def test_fake_and_true_integers_agree_bit_for_bit(
  method, bits, scale, chunk_size
):
  refine = {"refine": 1}
  a = np.concatenate(
    [
      key_families.draw(
        f, seed=0, count=2, chunk_size=chunk_size, beta=(0, 2)
      ).a
      for f in key_families.FAMILIES
    ]
  ).astype(np.float32)
  runs = [
    jax.jit(xla.invert, static_argnums=0)(
      resolve(
        InverseSpec(method, quant=QuantSpec(bits, scale, integer), **refine),
        chunk_size,
      ),
      a,
      jnp.float32(2.0),
    )
    for integer in (False, True)
  ]
  fake, true = (np.asarray(x) for x in runs)
  chex.assert_trees_all_equal(fake, true)
  assert np.abs(fake).max() > 1  # something was computed


def test_finer_scales_are_more_accurate():
  """A scale a row and column never loses to one of the largest entry."""
  rng = np.random.default_rng(3)
  row = np.exp(rng.uniform(-4, 0, (64, 1)))
  a, b = (rng.standard_normal((64, 64)).astype(np.float32) for _ in "ab")
  a, b = np.float32(a * row), np.float32(b * row.T)
  exact = a.astype(np.float64) @ b
  errors = []
  for scale in ("dynamic", "envelope"):
    spec = InverseSpec(quant=QuantSpec(8, scale))
    bound = jnp.float32(max(np.abs(a).max(), np.abs(b).max()))
    got = products.product(spec, bound)(jnp.asarray(a), jnp.asarray(b))
    errors.append(np.linalg.norm(got - exact) / np.linalg.norm(exact))
  assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", BITS)
def test_fake_quantize_is_straight_through_until_it_saturates(bits):
  scale = jnp.float32(1.0 / Q[bits])
  x = jnp.array([-3.0, -0.7, 0.0, 0.31, 1.0, 1.4], jnp.float32)
  y, vjp = jax.vjp(lambda x: quantize.fake_quantize(x, scale, bits=bits), x)
  want = np.clip(np.round(np.asarray(x) * Q[bits]), -Q[bits], Q[bits]) / Q[bits]
  chex.assert_trees_all_close(np.asarray(y), np.float32(want), atol=1e-6)
  g = jnp.arange(1.0, 7.0, dtype=jnp.float32)
  inside = np.array([0, 1, 1, 1, 1, 0], np.float32)
  chex.assert_trees_all_equal(np.asarray(vjp(g)[0]), np.asarray(g) * inside)


@pytest.mark.parametrize(
  "spec",
  [
    InverseSpec(precision="bfloat16"),
    InverseSpec(precision="float16"),
    InverseSpec(precision="tf32"),
    InverseSpec(quant=QuantSpec(8, "dynamic")),
    InverseSpec(quant=QuantSpec(16, "dynamic", integer=True)),
  ],
)
def test_product_gradient_is_that_of_the_rounded_operands(spec):
  rng = np.random.default_rng(4)
  a, b, g = (jnp.float32(rng.standard_normal((6, 6))) for _ in range(3))
  _, vjp = jax.vjp(products.product(spec), a, b)
  da, db = vjp(g)
  if spec.quant is None:
    form = {"tf32": 10, "bfloat16": 7, "float16": 10}[spec.precision]
    ra = jax.lax.reduce_precision(a, 8, form)
    rb = jax.lax.reduce_precision(b, 8, form)
  else:
    bits = spec.quant.bits
    ra, rb = (
      quantize.codes(x, s, bits=bits) * s
      for x, s in (
        (a, quantize.dynamic_scale(a, axis=-1, bits=bits)),
        (b, quantize.dynamic_scale(b, axis=-2, bits=bits)),
      )
    )
  ra, rb, g = (np.asarray(x, np.float64) for x in (ra, rb, g))
  chex.assert_trees_all_close(np.asarray(da, np.float64), g @ rb.T, atol=1e-5)
  chex.assert_trees_all_close(np.asarray(db, np.float64), ra.T @ g, atol=1e-5)


def test_bad_quant_specs_are_refused():
  with pytest.raises(ValueError, match="bits must be 4, 8 or 16, got 5"):
    QuantSpec(5)
  with pytest.raises(ValueError, match="bits must be 4, 8 or 16, got None"):
    QuantSpec(None)
  with pytest.raises(ValueError, match='scale must be "envelope" or "dynam'):
    QuantSpec(8, "row")
