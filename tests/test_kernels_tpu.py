"""The TPU kernels: their bodies interpreted, and compiled for every kind."""

import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu

import neumann_jax
from experiments.data import key_families
from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse import xla
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.chunk_inverse.kernels import tpu
from tests import oracles, tpu_compiler

# pallas has two interpreters: the body as plain XLA, and a simulated TPU
# whose memory holds NaN until it is written.
INTERPRETERS = {"plain": True, "simulated": pltpu.InterpretParams()}
FORMS = {
  "float32": {},
  "bfloat16": {"precision": "bfloat16"},
  "int8": {"quant": QuantSpec(8, "dynamic", integer=True)},
  "int16": {"quant": QuantSpec(16, "dynamic", integer=True)},
}
METHODS = ("ladder", "newton", "banded")
COUNT = len(key_families.FAMILIES)


def exact_spec(method, chunk_size, form, refine=0):
  """A spec of a method that no truncation blurs."""
  options = {"order": 3} if method != "ladder" else {}
  if method == "banded":
    options |= {"residual_steps": chunk_size // 4, "mask_every_step": True}
  return InverseSpec(method, refine=refine, **options, **FORMS[form])


@functools.cache
def problem(chunk_size):
  """A with garbage on and above the diagonal, and the inverses: [n, C, C].

  A matrix a family with beta <= 1, then as many with beta <= 2; three more
  below C = 64, so that no kernel's blocks are full.
  """
  rows = []
  for beta in (1.0, 2.0):
    for i, family in enumerate(key_families.FAMILIES):
      draw = functools.partial(
        key_families.draw, family, chunk_size=chunk_size, seed=3
      )
      count = 2 if beta == 2 and i < 3 and chunk_size < 64 else 1
      rows.append(draw(count=count, beta=(0.6 * beta, beta), decay=0.01 * i).a)
  a = np.float32(np.concatenate(rows))
  garbage = np.array([np.nan, np.inf, -np.inf], np.float32)
  garbage = np.resize(garbage, a.shape)
  upper = np.triu(np.ones(a.shape[1:], bool))
  return np.where(upper, garbage, a), key_families.exact_inverse(a)


def kernel(
  a, spec, bound=None, interpreter="plain", compiled=oracles.quick_jit
):
  interpret = INTERPRETERS[interpreter]
  spec = resolve(spec, a.shape[-1])
  form = compiled(lambda a, b: tpu.invert(spec, a, b, interpret=interpret))
  return np.asarray(form(jnp.asarray(a), bound))


def by_reference(a, spec, bound=None):
  spec = resolve(spec, a.shape[-1])
  form = oracles.quick_jit(lambda a, b: xla.invert(spec, a, b))
  return np.asarray(form(jnp.asarray(a), bound))


def limits(form, count, refine=0):
  """Largest relative error of each matrix: twice the design's, [count]."""
  one, two = oracles.DESIGN_TABLE[refine], oracles.DESIGN_TABLE_BETA_2
  if form == "float32":
    one, two = {form: oracles.FLOAT32_INVERSE / 2}, two
  # A refined int8 or bfloat16 inverse squares the error of the plain one.
  by_beta = one[form], two[form] if not refine else 20 * one[form]
  return 2 * np.repeat(by_beta, (COUNT, count - COUNT))


def check(chunk_size, spec, form, interpreter="plain"):
  a, truth = problem(chunk_size)
  found = kernel(a, spec, interpreter=interpreter)
  error = key_families.relative_error(found, truth)
  assert (error <= limits(form, len(a), spec.refine)).all(), error
  eye = np.broadcast_to(np.eye(chunk_size, dtype=np.float32), found.shape)
  chex.assert_trees_all_equal(np.triu(found), eye)
  want = by_reference(a, spec)
  if form.startswith("int"):
    chex.assert_trees_all_equal(found, want)
  else:
    apart = key_families.relative_error(found, want.astype(np.float64))
    assert (apart <= limits(form, len(a), spec.refine)).all(), apart


# Every method and every form once, where it compiles in the shortest time.
ONCE = (
  *(("newton", "float32"), ("banded", "bfloat16")),
  *(("ladder", "int8"), ("ladder", "int16")),
)


@pytest.mark.parametrize(
  "method, form",
  [
    pytest.param(*case, marks=[] if case in ONCE else pytest.mark.slow)
    for case in itertools.product(METHODS, FORMS)
  ],
)
def test_kernel_is_the_reference(method, form):
  check(16, exact_spec(method, 16, form), form)


@pytest.mark.parametrize(
  "bits, scale, integer",
  [
    pytest.param(
      *case,
      marks=[]
      if case in ((8, "envelope", False), (16, "dynamic", True))
      else pytest.mark.slow,
    )
    for case in itertools.product(
      (8, 16), ("envelope", "dynamic"), (True, False)
    )
  ],
)
def test_integers_are_bit_identical(bits, scale, integer):
  a, _ = problem(16)
  bound = jnp.linspace(1.0, 2.0, len(a))[:, None, None]
  spec = InverseSpec(quant=QuantSpec(bits, scale, integer=integer))
  found = kernel(a, spec, bound, "simulated")
  chex.assert_trees_all_equal(found, by_reference(a, spec, bound))


@pytest.mark.parametrize("form", ["int8", "float32"])
def test_generic_kernel_on_the_simulated_tpu(form):
  check(16, InverseSpec("newton", **FORMS[form]), form, "simulated")


@pytest.mark.parametrize(
  "chunk_size, form, refine, interpreter",
  [
    (64, "bfloat16", 0, "simulated"),
    pytest.param(64, "float32", 0, "plain", marks=pytest.mark.slow),
    pytest.param(32, "float32", 1, "simulated", marks=pytest.mark.slow),
  ],
)
def test_ladder(chunk_size, form, refine, interpreter):
  spec = InverseSpec(refine=refine, **FORMS[form])
  check(chunk_size, spec, form, interpreter)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
  "chunk_size, refine, interpreter",
  [(32, 1, "simulated"), (64, 0, "plain"), (64, 1, "plain")],
)
def test_every_kernel_is_the_reference(
  chunk_size, refine, interpreter, method, form
):
  spec = exact_spec(method, chunk_size, form, refine)
  check(chunk_size, spec, form, interpreter)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ladder_at_128(form):
  a, truth = problem(128)
  found = kernel(a, InverseSpec(**FORMS[form]))
  # Twice the size of the design's table: one level more.
  error = key_families.relative_error(found, truth)
  assert (error <= 2 * limits(form, len(a))).all(), error


@pytest.mark.slow
def test_blocks_of_the_ladder_do_not_matter(monkeypatch):
  """Three steps whose last is half empty, or all matrices in one.

  On the simulated TPU, where what a step does not write is NaN.
  """
  a = np.concatenate([problem(16)[0]] * 2)
  form = functools.partial(
    kernel,
    a,
    InverseSpec(precision="bfloat16"),
    compiled=oracles.same_order_jit,
  )
  whole = form()
  monkeypatch.setitem(tpu.LADDER_BLOCK, "bfloat16", 16)
  chex.assert_trees_all_equal(form(interpreter="simulated"), whole)


@pytest.mark.parametrize(
  "form", [pytest.param("bfloat16", marks=pytest.mark.slow), "float32"]
)
def test_matrices_that_share_lanes_never_mix(form):
  spec = InverseSpec(**FORMS[form])
  a = problem(32)[0][:5]
  spoilt = a.copy()
  spoilt[2, 20, 3], spoilt[2, 9, 2] = np.nan, np.inf
  form = oracles.quick_jit(lambda a: tpu.invert(spec, a, interpret=True))
  found, clean = np.array(form(spoilt)), np.array(form(a))
  assert not np.isfinite(found[2]).all()
  found[2] = clean[2]
  chex.assert_trees_all_equal(found, clean)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", ["ladder", "newton"])
def test_narrow_input_and_output(method, dtype):
  narrow = jnp.asarray(problem(16)[0][:6], dtype).reshape(2, 1, 3, 16, 16)
  found = kernel(narrow, InverseSpec(method))
  assert found.dtype == dtype and found.shape == narrow.shape
  wide = np.asarray(narrow.astype(jnp.float32)).reshape(-1, 16, 16)
  truth = key_families.exact_inverse(wide)
  found = found.reshape(-1, 16, 16).astype(np.float64)
  # One rounding of the result: half the distance between neighbours.
  limit = float(jnp.finfo(dtype).eps) / 2 + oracles.FLOAT32_INVERSE
  assert key_families.relative_error(found, truth).max() <= limit


def test_a_single_matrix():
  a, truth = problem(16)
  found = kernel(a[0], InverseSpec(), interpreter="simulated")
  error = key_families.relative_error(found, truth[0])
  assert error <= oracles.FLOAT32_INVERSE


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_lowers_where_wider_types_are_enabled(form):
  """No constant of a kernel turns float64, which a TPU lacks."""
  spec = InverseSpec(refine=1, **FORMS[form])
  with jax.enable_x64(True):
    a = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    traced = jax.jit(lambda a: tpu.invert(spec, a)).trace(a)
    traced.lower(lowering_platforms=("tpu",))


# --- Compiled without a TPU, by libtpu ---------------------------------------

INT8, INT16 = (
  InverseSpec(quant=QuantSpec(bits, "envelope", integer=True))
  for bits in (8, 16)
)
BFLOAT16 = InverseSpec(precision="bfloat16")
# name: spec and the shape of A.
COMPILED = {
  "ladder bfloat16": (BFLOAT16, (20, 64, 64)),
  "ladder float32": (InverseSpec(), (2, 4, 64, 64)),
  "ladder refined": (InverseSpec(refine=1), (3, 32, 32)),
  "ladder 16": (BFLOAT16, (5, 16, 16)),
  "ladder 128": (BFLOAT16, (4, 128, 128)),
  "newton": (InverseSpec("newton"), (9, 64, 64)),
  "banded": (InverseSpec("banded", precision="bfloat16"), (9, 64, 64)),
  "int8": (INT8, (9, 64, 64)),
  "int16": (INT16, (9, 64, 64)),
}
# Full blocks of the widest chunks must fit the vector memory of every kind.
COMPILED_SLOWLY = {
  f"{method} {form}": (
    exact_spec(method, 128, form, refine=1),
    (256, 128, 128),
  )
  for method in ("ladder", "newton")
  for form in FORMS
} | {
  f"ladder {c} bfloat16 matrices": (BFLOAT16, (256, c, c), "bfloat16")
  for c in (16, 32, 64)
}


# name: spec, chunk size, type of keys and values, key and value heads, width.
FUSED = {
  "fused": (BFLOAT16, 64, "bfloat16", (1, 3), 128),
  "fused float32": (InverseSpec(), 64, "float32", (2, 4), 128),
  "fused 128": (BFLOAT16, 128, "bfloat16", (2, 4), 256),
  "fused newton": (
    InverseSpec("newton", precision="bfloat16"),
    32,
    "bfloat16",
    (2, 2),
    64,
  ),
}
# One of each kernel; the others' are newton's with other steps.
COMPILED_FIRST = {
  name: (COMPILED | FUSED)[name]
  for name in ("ladder bfloat16", "newton", "int8", "fused")
}


def inverse_case(spec, shape, dtype="float32"):
  """A program and the shapes of its operands."""
  form = functools.partial(neumann_jax.inverse, spec=spec, implementation="tpu")
  return form, [jax.ShapeDtypeStruct(shape, dtype)]


def fused_case(spec, chunk_size, dtype, heads, width):
  """Likewise of k, v, log_decay, beta to u, w; the last chunk is padded."""
  form = functools.partial(
    neumann_jax.wy_representation,
    spec=spec,
    chunk_size=chunk_size,
    implementation="tpu",
  )
  k, v = ((2, 1000, n, width) for n in heads)
  wide = [jax.ShapeDtypeStruct(shape, dtype) for shape in (k, v)]
  return form, wide + [jax.ShapeDtypeStruct(v[:-1], jnp.float32)] * 2


def compile_all(topology, names):
  """Prints what became of every case: runs in a process of its own."""
  device = topologies.get_topology_desc(topology, "tpu").devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  said = {}
  for case, options in [x for name in names for x in globals()[name].items()]:
    form, shapes = (fused_case if case in FUSED else inverse_case)(*options)
    try:
      text = (
        jax.jit(form, in_shardings=sharding, out_shardings=sharding)
        .lower(*shapes)
        .compile()
        .as_text()
      )
      said[case] = "" if "neumann_" in text else "no kernel in the program"
    except Exception as error:
      said[case] = str(error)[:500]
  print(json.dumps(said))


def test_compiles_for_a_tpu():
  found = tpu_compiler.run("tests.test_kernels_tpu", "v6e", ["COMPILED_FIRST"])
  assert found == dict.fromkeys(COMPILED_FIRST, "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_compiles_for_every_kind_of_tpu(kind):
  found = tpu_compiler.run(
    "tests.test_kernels_tpu", kind, ["COMPILED", "FUSED"]
  )
  assert found == dict.fromkeys(COMPILED | FUSED, "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", tpu_compiler.KINDS)
def test_full_blocks_compile_for_every_kind_of_tpu(kind):
  found = tpu_compiler.run("tests.test_kernels_tpu", kind, ["COMPILED_SLOWLY"])
  assert found == dict.fromkeys(COMPILED_SLOWLY, "")
