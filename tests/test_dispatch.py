"""Back ends by name: transformations, lowering elsewhere, named refusals."""

import functools
import itertools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import neumann_jax
from experiments.data import key_families
from neumann_jax import InverseSpec, QuantSpec, backends, lowering
from tests import oracles


@functools.cache
def problem(heads=4, chunk_size=16):
  """A [4, heads, C, C] and its float64 inverse."""
  rows = [
    key_families.draw(
      family, seed=1, count=heads, chunk_size=chunk_size, beta=(0.6, 1.0)
    ).a
    for family in ("rank_4", "period_7", "identical", "cosine_0.7")
  ]
  a = np.stack(rows)
  return np.float32(a), key_families.exact_inverse(a)


def _scan(f, a):
  return lax.scan(lambda carry, x: (carry, f(x)), 0, a)[1]


def _mapped(spec, f, a):
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 2), ("batch", "heads"), axis_types=auto)
  return jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec)(a)


TRANSFORMS = {
  "jit": lambda f, a: jax.jit(f)(a),
  "vmap": lambda f, a: jax.vmap(jax.vmap(f))(a),
  "vmap over heads": lambda f, a: jax.vmap(f, in_axes=1, out_axes=1)(a),
  "scan": _scan,
  "remat": lambda f, a: jax.checkpoint(f)(a),
  "shard_map": functools.partial(_mapped, P("batch", "heads")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_transformations(implementation, name):
  a, truth = problem()
  f = functools.partial(neumann_jax.inverse, implementation=implementation)
  found = jax.jit(functools.partial(TRANSFORMS[name], f))(jnp.asarray(a))
  error = key_families.relative_error(np.asarray(found), truth)
  assert error.max() <= oracles.FLOAT32_INVERSE


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
  "implementation, gradient",
  [
    ("auto", "truncated"),
    ("xla", "implicit"),
    pytest.param("auto", "implicit", marks=pytest.mark.slow),
    pytest.param("xla", "truncated", marks=pytest.mark.slow),
  ],
)
def test_gradients_under_transformations(implementation, name, gradient):
  a, truth = problem()
  weights = np.random.default_rng(0).standard_normal(a.shape)
  f = functools.partial(
    neumann_jax.inverse, implementation=implementation, gradient=gradient
  )
  loss = lambda a: jnp.sum(TRANSFORMS[name](f, a) * np.float32(weights))  # noqa: E731
  found = jax.jit(jax.grad(loss))(jnp.asarray(a))
  tt = np.swapaxes(truth, -1, -2)
  want = -np.tril(tt @ weights @ tt, -1)
  assert np.abs(found - want).max() <= 1e-5 * np.abs(want).max()


SPECS = {
  "ladder": InverseSpec(),
  "newton": InverseSpec("newton", precision="bfloat16"),
  "int8": InverseSpec(quant=QuantSpec(8, "dynamic", integer=True)),
}


PLATFORMS = (
  *(("tpu", "tpu", "tpu_custom_call"), ("tpu", "auto", "tpu_custom_call")),
  *(("cuda", "gpu", oracles.GPU_CALL), ("cuda", "auto", oracles.GPU_CALL)),
)


@pytest.mark.parametrize(
  "platform, implementation, call, spec",
  [
    # A back end that is named is what "auto" takes, of any inverse.
    pytest.param(
      *(*case, spec),
      marks=[] if "auto" in case or spec == "ladder" else pytest.mark.slow,
    )
    for case in PLATFORMS
    for spec in SPECS
  ],
)
def test_export_from_a_cpu_host(platform, implementation, call, spec):
  """The kernel is in what a CPU host exports for another platform."""
  f = functools.partial(
    neumann_jax.inverse, spec=SPECS[spec], implementation=implementation
  )
  a = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  exported = oracles.exported(f, platform, a)
  assert call in exported.mlir_module()
  assert exported.out_avals[0].shape == a.shape


@pytest.mark.parametrize("form", [lambda f: f, jax.jit, jax.vmap])
@pytest.mark.parametrize(
  "implementation, platform", [("tpu", "tpu"), ("gpu", "cuda")]
)
def test_an_explicit_back_end_on_a_cpu_is_refused(
  implementation, platform, form
):
  a = jnp.asarray(problem()[0])
  f = functools.partial(neumann_jax.inverse, implementation=implementation)
  said = f"implementation='{implementation}' runs on {platform} only, but the"
  with oracles.refused(ValueError, said + " program is lowered for cpu"):
    form(f)(a)


TENSOR_CORES = "TPU has no float16 products"
REFUSALS = [
  ("tpu", 8, InverseSpec(), "chunk size 8 is not one of 16, 32, 64 and 128"),
  ("gpu", 256, InverseSpec(), "chunk size 256 is not one of"),
  ("interpret", 8, InverseSpec(), "chunk size 8 is not one of"),
  ("tpu", 64, InverseSpec("exact"), 'method "exact" has no kernel'),
  ("gpu", 64, InverseSpec("doubling"), 'method "doubling" has no kernel'),
  ("tpu", 64, InverseSpec("unmasked"), 'method "unmasked" has no kernel'),
  ("tpu", 64, InverseSpec(precision="float16"), TENSOR_CORES),
  ("gpu", 16, SPECS["int8"], "int8 products on a GPU need a chunk size of"),
]


@pytest.mark.parametrize("implementation, chunk_size, spec, reason", REFUSALS)
def test_refusals_by_name(implementation, chunk_size, spec, reason):
  a = jax.ShapeDtypeStruct((chunk_size, chunk_size), jnp.float32)
  said = f"implementation='{implementation}' cannot run: .*{reason}"
  with oracles.refused(ValueError, said):
    jax.eval_shape(
      functools.partial(
        neumann_jax.inverse, spec=spec, implementation=implementation
      ),
      a,
    )
  # "auto" takes XLA for the same request.
  found = neumann_jax.inverse(jnp.zeros(a.shape), spec)
  chex.assert_trees_all_equal(found, jnp.eye(chunk_size))


@pytest.mark.parametrize("bits", [None, 12, "8"])
def test_an_integer_spec_without_bits_is_refused(bits):
  with oracles.refused(ValueError, "bits must be 4, 8 or 16, got"):
    InverseSpec(quant=QuantSpec(bits=bits, integer=True))


def test_auto_logs_a_fallback_once(caplog):
  spec = InverseSpec(precision="tf32")
  backends.say_fallback.cache_clear()
  a = jnp.asarray(problem()[0])
  with caplog.at_level(logging.INFO, logger="absl"):
    for _ in range(2):
      neumann_jax.inverse(a, spec)
  said = [r.getMessage() for r in caplog.records if "takes XLA" in r.message]
  assert said == [
    "implementation 'auto' takes XLA on a tpu: a TPU has no tf32 products, "
    "only bfloat16 and float32"
  ]


@pytest.mark.parametrize(
  "form, platforms",
  [
    *((form, ["cpu", "tpu"]) for form in ("inverse", "rule", "vmap")),
    ("rule", ["cuda", "tpu"]),
    pytest.param("inverse", ["cuda", "tpu"], marks=pytest.mark.slow),
    pytest.param("vmap", ["cuda", "tpu"], marks=pytest.mark.slow),
  ],
)
def test_one_export_for_two_platforms(form, platforms):
  """Each kernel is lowered for its own platform alone."""
  f = neumann_jax.inverse if form != "vmap" else jax.vmap(neumann_jax.inverse)
  shapes = [jax.ShapeDtypeStruct((5, 2, 64, 64), jnp.float32)]
  if form == "rule":
    f = functools.partial(neumann_jax.gated_delta_rule, fused=True)
    k, gate = (
      jax.ShapeDtypeStruct((1, 70, 2, *d), jnp.float32) for d in ((64,), ())
    )
    shapes = [k, k, k, gate, gate]
  exported = oracles.exported(f, platforms, *shapes)
  text = exported.mlir_module()
  calls = {"tpu": "tpu_custom_call", "cuda": oracles.GPU_CALL, "cpu": None}
  for platform in platforms:
    assert calls[platform] is None or calls[platform] in text
  if "cpu" in platforms:
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.random(x.shape) / 8, x.dtype) for x in shapes]
    if form == "rule":
      arrays[3] = -arrays[3]
    chex.assert_trees_all_close(
      exported.call(*arrays), f(*arrays), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("implementation", ["auto", "gpu"])
def test_what_an_export_of_triton_needs_is_said(caplog, implementation):
  """JAX refuses it in words that name no option of ours."""
  f = functools.partial(neumann_jax.inverse, implementation=implementation)
  a = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
  lowering._warn_of_triton.cache_clear()
  with caplog.at_level(logging.WARNING, "absl"), oracles.on_a_gpu():
    jax.jit(f).trace(a).lower(lowering_platforms=("cuda",))
    assert not caplog.records
    with pytest.raises(ValueError, match=r"custom calls .* no compatibility"):
      jax.export.export(jax.jit(f), platforms=("cuda",))(a)
  (said,) = (r.getMessage() for r in caplog.records)
  assert f"DisabledSafetyCheck.custom_call('{oracles.GPU_CALL}')" in said
  assert "implementation='xla' needs no check" in said
  f = functools.partial(neumann_jax.inverse, implementation="xla")
  platforms = ("cpu", "cuda", "tpu")
  exported = jax.export.export(jax.jit(f), platforms=platforms)(a)
  assert exported.platforms == platforms


@pytest.mark.parametrize("implementation", ["auto", "interpret"])
def test_no_matrices_have_no_inverses(implementation):
  a = jnp.zeros((0, 3, 16, 16))
  found = neumann_jax.inverse(a, implementation=implementation)
  assert found.shape == a.shape and found.dtype == a.dtype


@pytest.mark.parametrize(
  "implementation, bits, scale",
  [
    pytest.param(
      *case,
      marks=[]
      if case in (("xla", 8, "envelope"), ("interpret", 16, "dynamic"))
      else pytest.mark.slow,
    )
    for case in itertools.product(
      ("xla", "interpret"), (8, 16), ("envelope", "dynamic")
    )
  ],
)
def test_nan_survives_integers(implementation, bits, scale):
  """An integer cannot be NaN: the same matrices are as with floating codes."""
  a = np.tile(problem(chunk_size=16)[0][:1, :1], (2, 1, 1, 1))
  a[1, 0, 9, 4] = np.nan
  codes, integers = (
    neumann_jax.inverse(
      jnp.asarray(a),
      InverseSpec(quant=QuantSpec(bits, scale, integer)),
      implementation=name,
    )
    for integer, name in ((False, "xla"), (True, implementation))
  )
  assert np.isfinite(integers[0]).all()
  assert np.isnan(codes[1]).any()
  assert np.isnan(np.asarray(integers[1]))[np.isnan(codes[1])].all()


def test_a_named_back_end_says_what_it_leaves_to_xla(caplog):
  """The scan over chunks has a kernel for 16 bits alone."""
  backends.say_fallback.cache_clear()
  k, gate = (
    jax.ShapeDtypeStruct((1, 70, 2, *d), jnp.float32) for d in ((64,), ())
  )
  f = functools.partial(neumann_jax.gated_delta_rule, implementation="gpu")
  with caplog.at_level(logging.WARNING, logger="absl"):
    oracles.exported(f, "cuda", k, k, k, gate, gate)
  said = [r.getMessage() for r in caplog.records]
  assert any(
    "'gpu' takes XLA on a gpu" in one and "float32" in one for one in said
  ), said


def _doubling(traced):
  """x + x, whose kernels multiply and tell who traced them, and how."""

  def kernel(name):
    def launch(static, x):
      traced.append((name, jax.config.jax_numpy_dtype_promotion))
      return x * jnp.float32(2)

    return backends.Kernel(lambda *_: None, launch)

  return backends.Operation(
    lambda static, x: x + x, {"tpu": kernel("tpu"), "gpu": kernel("gpu")}
  )


def test_a_kernel_is_traced_where_a_program_is_lowered_for_it():
  """Tracing one takes longer than compiling what a CPU runs instead."""
  traced, x = [], jnp.arange(3, dtype=jnp.float32)
  operation = _doubling(traced)
  double = jax.jit(lambda x: backends.run(operation, "auto", None, x))
  np.testing.assert_array_equal(double(x), [0, 2, 4])
  with jax.numpy_dtype_promotion("standard"):
    program = double.trace(x)
  assert not traced
  for platform, name in (("tpu", "tpu"), ("cuda", "gpu")):
    text = program.lower(lowering_platforms=(platform,)).as_text()
    # With the settings of the trace, which the lowering no longer stands in.
    assert traced == [(name, "standard")]
    assert "multiply" in text and "stablehlo.add" not in text
    traced.clear()


@pytest.mark.parametrize("form", [lambda f: f, jax.vmap])
def test_a_kernel_is_lowered_for_the_device_of_the_trace(form):
  """An abstract one that is named when a program is lowered is too late."""
  found = []

  def launch(static, x):
    found.append(jax.sharding.get_abstract_mesh().abstract_device)
    return x

  operation = backends.Operation(
    lambda static, x: x, {"gpu": backends.Kernel(lambda *_: None, launch)}
  )
  f = jax.jit(form(lambda x: backends.run(operation, "auto", None, x)))
  with oracles.on_a_gpu():
    program = f.trace(jnp.zeros(3))
    device = jax.sharding.get_abstract_mesh().abstract_device
  program.lower(lowering_platforms=("cuda",))
  program = f.trace(jnp.zeros(3))
  with oracles.on_a_gpu():
    program.lower(lowering_platforms=("cuda",))
  assert found == [device, None] and device.platform == "cuda"


@pytest.mark.parametrize(
  "form",
  [
    jax.vmap,
    lambda f: jax.vmap(f, in_axes=1, out_axes=1),
    lambda f: jax.vmap(jax.vmap(f)),
  ],
)
def test_no_kernel_of_another_platform_is_traced_under_vmap(form):
  traced, x = [], jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
  operation = _doubling(traced)
  double = jax.jit(form(lambda x: backends.run(operation, "auto", None, x)))
  np.testing.assert_array_equal(double(x), 2 * x)
  program = double.trace(x)
  assert not traced
  for platform, name in (("tpu", "tpu"), ("cuda", "gpu")):
    text = program.lower(lowering_platforms=(platform,)).as_text()
    assert [found for found, _ in traced] == [name]
    assert "multiply" in text and "stablehlo.add" not in text
    traced.clear()


def test_a_kernel_gets_what_vmap_does_not_map():
  kernel = backends.Kernel(lambda *_: None, lambda static, x, y: x * y)
  operation = backends.Operation(lambda static, x, y: x + y, {"tpu": kernel})
  run = functools.partial(backends.run, operation, "auto", None)
  x, y = jnp.zeros((3, 2)), jnp.zeros(3)
  for axes in ((1, None), (None, 1)):
    arrays = (x, y) if axes[0] else (y, x)
    mapped = jax.jit(jax.vmap(run, in_axes=axes))
    assert mapped(*arrays).shape == (2, 3)
    text = mapped.trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert "multiply" in text


def test_a_kernel_of_other_shapes_is_refused_when_it_is_lowered():
  kernel = backends.Kernel(lambda *_: None, lambda static, x: x[:1])
  operation = backends.Operation(lambda static, x: x, {"tpu": kernel})
  run = jax.jit(lambda x: backends.run(operation, "auto", None, x))
  with pytest.raises(TypeError, match=r"a kernel for tpu gives \(1,\).*\(3,\)"):
    run.trace(jnp.zeros(3)).lower(lowering_platforms=("tpu",))
