"""Full attention by cuDNN and by splash attention, as far as a CPU can tell.

Splash attention runs in its interpreter. cuDNN is lowered; the choice between
calls, documents and caches is tested with a library that runs here.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from neumann_jax import sharding, target
from neumann_jax.layers.kernels import library, library_attention
from tests import oracles
from tests.attention_operands import MESH_AXES, in_blocks, operands


def error(found, want):
  return oracles.error(np.float32(found), np.float32(want))


# --- Splash attention --------------------------------------------------------


@pytest.fixture
def interpreted(monkeypatch):
  make = functools.partial(splash.make_splash_mha, interpret=True)
  monkeypatch.setattr(splash, "make_splash_mha", make)


@pytest.mark.parametrize("packed", [True, False])
def test_splash_attention_is_the_xla_form(interpreted, packed):
  """At a length that is no whole number of tiles, with grouped heads."""
  args = operands(136)
  ids = jnp.asarray([[3] * 50 + [0] * 86]) if packed else None
  found = library_attention._by_splash(*args, ids)
  # Both round weights to bfloat16, in another order of sums.
  assert error(found, in_blocks(*args, ids)) < 6e-3


@pytest.mark.slow
def test_gradients_of_splash_attention_are_those_of_the_xla_form(interpreted):
  args = operands(136)
  ids = jnp.asarray([[3] * 50 + [0] * 86])
  pull = lambda form: jax.vjp(lambda *x: form(*x, ids), *args)[1](args[0])  # noqa: E731
  found = pull(library_attention._by_splash)
  # jax's own lowering of a bfloat16 product promotes implicitly.
  with jax.numpy_dtype_promotion("standard"):
    want = pull(in_blocks)
  for x, y in zip(found, want, strict=True):
    assert error(x, y) < 1e-2


# --- Lowering ----------------------------------------------------------------


@pytest.fixture
def with_cudnn(monkeypatch):
  """jax asks the host for cuDNN when it traces, not when it compiles."""
  public = jax.nn.dot_product_attention.__globals__
  inside = public["cudnn_dot_product_attention"].__globals__
  monkeypatch.setitem(inside, "check_cudnn_version", lambda: 91300)
  library_attention._cudnn_refusal.cache_clear()
  yield
  library_attention._cudnn_refusal.cache_clear()


@pytest.mark.parametrize(
  ("name", "platform", "kernel"),
  [("gpu", "cuda", "fmha"), ("tpu", "tpu", "tpu_custom_call")],
)
def test_a_named_attention_lowers_with_its_gradients(
  with_cudnn, name, platform, kernel
):
  args = operands(256)
  ids = jnp.zeros((1, 256), jnp.int32)
  attend = library_attention.choose(name, *args[:2], None, MESH_AXES, in_blocks)

  def traced(attend):
    def step(*args):
      out, pull = jax.vjp(lambda *x: attend(*x, ids), *args)
      return pull(out)

    return jax.jit(step).trace(*args)

  def module(attend):
    lowered = traced(attend).lower(lowering_platforms=(platform,))
    return lowered.as_text().lower()

  library = module(attend)
  assert kernel in library
  # No weights of queries and keys in XLA, whose form has a softmax of them.
  assert "stablehlo.exponential" not in library
  # jax's own lowering of a bfloat16 product promotes implicitly.
  with jax.numpy_dtype_promotion("standard"):
    assert "stablehlo.exponential" in module(in_blocks)
  sentence = f"attention='{name}' runs on {platform} only"
  with pytest.raises(ValueError, match=sentence):
    traced(attend).lower(lowering_platforms=("cpu",))


@pytest.mark.parametrize("implementation", ["auto", "named"])
@pytest.mark.parametrize(
  ("name", "platform", "kernel"),
  [("gpu", "cuda", "fmha"), ("tpu", "tpu", "tpu_custom_call")],
)
def test_a_library_lowers_on_a_mesh_with_its_gradients(
  with_cudnn, name, platform, kernel, implementation
):
  """Each device takes its own rows and heads, in 16 bits and 128 lanes."""
  elsewhere = in_blocks if implementation == "auto" else None
  run = library_attention._run(name, elsewhere)
  attend = functools.partial(library_attention._on_mesh, run, MESH_AXES)
  mesh = sharding.make_mesh(data=2, tensor=2)

  def split(*names):
    return jax.NamedSharding(mesh, jax.P(*names))

  token = split("data", None, "tensor")
  args = [
    jax.ShapeDtypeStruct((4, 128, n, 128), jnp.bfloat16, sharding=token)
    for n in (4, 2, 2)
  ]
  ids = jax.ShapeDtypeStruct((4, 128), jnp.int32, sharding=split("data"))

  def step(*args):
    *args, ids = args
    out, pull = jax.vjp(lambda *x: attend(*x, ids), *args)
    return pull(out)

  lowered = jax.jit(step).trace(*args, ids)
  text = lowered.lower(lowering_platforms=(platform,)).as_text()
  found = [x for x in text.splitlines() if re.search(f"{kernel}.* : ", x)]
  # Forward and backward; splash attention has a kernel for each derivative.
  assert len(found) == {"gpu": 2, "tpu": 3}[name]
  query = {"gpu": "2x128x2x128xbf16", "tpu": "2x2x128x128xbf16"}[name]
  assert all(query in line for line in found)
  assert not any("4x128" in line for line in found)


@pytest.mark.parametrize("packed", [True, False])
def test_no_empty_array_of_cudnn_enters_a_shard_map(with_cudnn, packed):
  """The compiler of jaxlib 0.11.2 does not survive one."""

  def layers(q, k, v, ids):
    attend = lambda q, _: (library_attention._by_cudnn(q, k, v, ids), None)  # noqa: E731
    return jax.lax.scan(attend, q, length=2)[0]

  rows, mesh = jax.P("data"), sharding.make_mesh(data=2)
  spread = jax.shard_map(layers, mesh=mesh, in_specs=rows, out_specs=rows)
  ids = jnp.zeros((2, 16), jnp.int32) if packed else None

  def step(*args):
    out, pull = jax.vjp(lambda *x: spread(*x, ids), *args)
    return pull(out)

  traced = jax.jit(step).trace(*operands(16, rows=2))
  lines = traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
  assert sum("fmha" in line for line in lines) == 2
  # Of the forward and the backward pass, with the types of what enters.
  entered = [line for line in lines if "sdy.manual_computation" in line]
  assert len(entered) == 2 and all("<1x16x4x128xbf16>" in x for x in entered)
  assert not any(re.search(r"<(\d+x)*0x", line) for line in entered)


def test_gradients_of_a_kernel_that_keeps_empty_arrays():
  """On one device, and where each has rows of its own."""

  @jax.custom_vjp
  def kernel(x, y, flip):
    return jnp.where(flip, -x * y, x * y)

  def backward(kept, g):
    x, y, flip, *empty = kept
    assert [one.shape for one in empty] == [(0, 2), (0, 3)]
    g = jnp.where(flip, -g, g)
    return g * y, g * x, None

  # Of the two one varies over the mesh.
  kernel.defvjp(
    lambda x, *rest: (
      kernel(x, *rest),
      (x, *rest, jnp.zeros((0, 2)), x[:0]),
    ),
    backward,
  )
  x, y = jnp.arange(12.0).reshape(4, 3), jnp.arange(12.0, 24).reshape(4, 3)
  flip = x % 2 == 0
  one, rows = library.keeping_no_empty(kernel), jax.P("data")
  spread = jax.shard_map(
    one, mesh=sharding.make_mesh(data=2), in_specs=rows, out_specs=rows
  )

  @oracles.quick_jit
  def pulled(x, y):
    results = []
    for form in (one, spread):
      out, pull = jax.vjp(lambda x, y: form(x, y, flip), x, y)  # noqa: B023
      assert all(leaf.size for leaf in jax.tree.leaves(pull))
      results.append((out, *pull(jnp.ones_like(out))))
    return results

  sign = jnp.where(flip, -1, 1)
  for found in pulled(x, y):
    for value, want in zip(found, (x * y, y, x), strict=True):
      np.testing.assert_array_equal(value, sign * want)


@pytest.mark.slow
def test_splash_attention_on_a_mesh_is_that_of_one_device(interpreted):
  args = operands(128, rows=2)
  mesh = sharding.make_mesh(data=2, tensor=2)
  attend = functools.partial(
    library_attention._on_mesh, library_attention._by_splash, MESH_AXES
  )

  @jax.jit
  def pulled(*args):
    return jax.vjp(lambda *x: attend(*x, None), *args)[1](args[0])

  want = pulled(*args)
  where = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
  for x, y in zip(pulled(*jax.device_put(args, where)), want, strict=True):
    np.testing.assert_array_equal(np.float32(x), np.float32(y))


def test_cudnn_takes_an_odd_number_of_tokens_of_documents(with_cudnn):
  args = operands(7)
  ids = jnp.asarray([[0] * 3 + [1] * 4])
  assert library_attention.refusal("gpu", *args[:2], documents=True) is None

  def step(*args):
    out, pull = jax.vjp(lambda *x: library_attention._by_cudnn(*x, ids), *args)
    return pull(out)

  traced = jax.jit(step).trace(*args)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  # Forward and backward, of 8 tokens.
  assert len(re.findall(r"fmha.* : \(tensor<1x8x4x128xbf16>", text)) == 2


def test_an_odd_number_of_tokens_is_that_many(monkeypatch):
  """With XLA in the place of cuDNN."""
  attend = jax.nn.dot_product_attention
  args = operands(7, dim=8, dtype=jnp.float32)
  ids = jnp.asarray([[0] * 3 + [1] * 4])
  want = in_blocks(*args, ids)

  def library(*args, implementation, **options):
    assert implementation == "cudnn"
    assert args[0].shape[1] == 8
    return attend(*args, **options)

  monkeypatch.setattr(jax.nn, "dot_product_attention", library)
  found = library_attention._by_cudnn(*args, ids)
  oracles.assert_close(found, want, oracles.FLOAT32_BLOCK)


def test_queries_of_splash_attention_are_scaled_and_rounded_once(monkeypatch):
  monkeypatch.setattr(library_attention, "_splash", lambda q, *_: q)
  q, k, v = operands(128)
  found = library_attention._by_splash(q, k, v)
  want = np.float32(q) * np.float32(128**-0.5)
  np.testing.assert_array_equal(
    np.float32(found), np.float32(want.astype(jnp.bfloat16))
  )


def test_a_long_row_of_documents_takes_no_mask_of_all_pairs(
  with_cudnn, monkeypatch, caplog
):
  monkeypatch.setattr(target, "platform", lambda: "cuda")
  limit = library_attention._LONGEST_MASKED
  shape = lambda length: jax.ShapeDtypeStruct(  # noqa: E731
    (1, length, 2, 128), jnp.bfloat16
  )
  choose = lambda name, length, documents: library_attention.choose(  # noqa: E731
    *(name, shape(length), shape(length), None, MESH_AXES, in_blocks),
    documents=documents,
  )
  assert choose("gpu", limit, True) and choose("gpu", 2 * limit, False)
  assert library_attention.takes_documents("auto", *2 * [shape(limit)])
  assert not library_attention.takes_documents("auto", *2 * [shape(2 * limit)])
  sentence = f"mask of all pairs of {2 * limit} tokens"
  with oracles.refused(ValueError, sentence):
    choose("gpu", 2 * limit, True)
  library_attention._log_fallback.cache_clear()
  with caplog.at_level("INFO"):
    assert choose("auto", 2 * limit, True) is None
  assert sentence in caplog.text
  monkeypatch.setattr(target, "platform", lambda: "tpu")
  assert choose("auto", 2 * limit, True)
