"""The Triton kernel's body, in interpret mode; on a GPU see inverse_speed."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import key_families
from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse import xla
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.chunk_inverse.kernels import gpu
from tests import oracles

FORMS = {
  "float32": {},
  "tf32": {"precision": "tf32"},
  "bfloat16": {"precision": "bfloat16"},
  "float16": {"precision": "float16"},
  "int8": {"quant": QuantSpec(8, "dynamic", integer=True)},
  "int16": {"quant": QuantSpec(16, "dynamic", integer=True)},
}
# Largest relative error at beta <= 1; tf32 has the mantissa of float16.
TABLE = oracles.DESIGN_TABLE[0]
LIMITS = {"float32": oracles.FLOAT32_INVERSE / 2} | TABLE
LIMITS |= {"tf32": TABLE["float16"]}
METHODS = {
  "ladder": {},
  "newton": {"order": 3},
  "banded": {"order": 3, "residual_steps": 16, "mask_every_step": True},
}


@functools.cache
def problem(chunk_size, beta_max=1.0):
  """One matrix a family, [families, C, C], and the float64 inverses."""
  rows = [
    key_families.draw(
      family,
      seed=2,
      count=1,
      chunk_size=chunk_size,
      beta=(0.6 * beta_max, beta_max),
    ).a
    for family in key_families.FAMILIES
  ]
  a = np.concatenate(rows)
  return np.float32(a), key_families.exact_inverse(a)


def compiled(spec):
  """Sums of the banded form, which two programs must round alike."""
  banded = spec.method == "banded" and spec.quant is not None
  return oracles.same_order_jit if banded else oracles.quick_jit


def kernel(a, spec, bound=None):
  spec = resolve(spec, a.shape[-1])
  form = compiled(spec)(lambda a, b: gpu.invert(spec, a, b, interpret=True))
  return np.asarray(form(jnp.asarray(a), bound))


def by_reference(a, spec, bound=None):
  spec = resolve(spec, a.shape[-1])
  form = compiled(spec)(lambda a, b: xla.invert(spec, a, b))
  return np.asarray(form(jnp.asarray(a), bound))


def check(chunk_size, spec, limit):
  a, truth = problem(chunk_size)
  found = kernel(a, spec)
  assert key_families.relative_error(found, truth).max() <= 2 * limit
  eye = np.broadcast_to(np.eye(chunk_size), found.shape)
  chex.assert_trees_all_equal(np.triu(found), eye.astype(np.float32))
  return found


# Every method and every form once, where it compiles in the shortest time.
ONCE = (
  *(("ladder", "bfloat16"), ("ladder", "float16"), ("newton", "int16")),
  *(("banded", "float32"), ("banded", "tf32")),  # int8 is refined below
)


@pytest.mark.parametrize(
  "method, form",
  [
    pytest.param(*case, marks=[] if case in ONCE else pytest.mark.slow)
    for case in itertools.product(METHODS, FORMS)
  ],
)
def test_kernel_is_the_reference(method, form):
  """C = 32: two tiles, so that joins within and between tiles both occur."""
  options = METHODS[method]
  if method == "banded":
    options = options | {"residual_steps": 8}  # what 32 tokens need
  spec = InverseSpec(method, **options, **FORMS[form])
  found = check(32, spec, LIMITS[form])
  want = by_reference(problem(32)[0], spec)
  if form.startswith("int"):
    chex.assert_trees_all_equal(found, want)
  else:
    # Sums over tiles are taken in another order; an operand on the border
    # between two roundings may then fall to the other side.
    assert np.abs(found - want).max() <= 2 * max(LIMITS[form], 1e-6)


@pytest.mark.parametrize("form", ["bfloat16", "float16", "tf32", "int8"])
def test_refinement(form):
  limit = oracles.DESIGN_TABLE[1].get(form, oracles.DESIGN_TABLE[1]["float16"])
  check(32, InverseSpec(refine=1, **FORMS[form]), limit)


@pytest.mark.parametrize("chunk_size, form", [(16, "float16"), (64, "float16")])
def test_other_chunk_sizes(chunk_size, form):
  check(chunk_size, InverseSpec(**FORMS[form]), LIMITS[form])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunk_size", [64, 128])
def test_kernel_is_the_reference_at_full_size(chunk_size, method, form):
  options = METHODS[method]
  if method == "banded" and chunk_size == 128:
    options = options | {"block": 64}
  spec = InverseSpec(method, **options, **FORMS[form])
  found = check(chunk_size, spec, 2 * LIMITS[form])
  if form.startswith("int"):
    want = by_reference(problem(chunk_size)[0], spec)
    chex.assert_trees_all_equal(found, want)


@pytest.mark.parametrize(
  "bits, integer",
  [
    (8, False),
    (16, True),
    pytest.param(8, True, marks=pytest.mark.slow),
    pytest.param(16, False, marks=pytest.mark.slow),
  ],
)
def test_fixed_scale_is_bit_identical(bits, integer):
  a, _ = problem(32, 2.0)
  bound = jnp.full((len(a), 1, 1), 2.0).at[0].set(1.7)
  spec = InverseSpec(quant=QuantSpec(bits, "envelope", integer=integer))
  found = kernel(a, spec, bound)
  chex.assert_trees_all_equal(found, by_reference(a, spec, bound))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_input_and_output(dtype):
  a, _ = problem(16)
  narrow = jnp.asarray(a, dtype).reshape(2, 1, 4, 16, 16)
  found = kernel(narrow, InverseSpec())
  assert found.dtype == dtype and found.shape == narrow.shape
  wide = np.asarray(narrow.astype(jnp.float32)).reshape(-1, 16, 16)
  truth = key_families.exact_inverse(wide.astype(np.float64))
  found = found.reshape(-1, 16, 16).astype(np.float64)
  # One rounding of the result: half the distance between neighbours.
  limit = float(jnp.finfo(dtype).eps) / 2 + oracles.FLOAT32_INVERSE
  assert key_families.relative_error(found, truth).max() <= limit


def test_what_lies_above_the_diagonal_is_never_used():
  a, _ = problem(32)
  upper = np.triu(np.ones((32, 32), bool))
  spec = InverseSpec(precision="float16")
  spoilt = kernel(np.where(upper, np.float32(np.nan), a), spec)
  chex.assert_trees_all_equal(spoilt, kernel(a, spec))


def test_interpreted_under_vmap():
  a, _ = problem(16)
  f = functools.partial(gpu.invert, InverseSpec(), interpret=True)
  chex.assert_trees_all_equal(
    np.asarray(jax.vmap(f)(jnp.asarray(a))), kernel(a, InverseSpec())
  )
