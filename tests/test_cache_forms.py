"""Caches beside generation: exported programs, x64, quantised models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from neumann_jax import (
  Execution,
  LanguageModel,
  ModelCache,
  RuleOptions,
  gated_delta_rule,
  sharding,
)
from neumann_jax.checkpoint.params import abstract_model
from neumann_jax.weight_quantization import preset, quantize_weights
from tests import models, oracles


def test_a_step_is_exported_with_its_cache():
  """Written, read and called elsewhere, it is the step."""
  pytest.importorskip("flatbuffers")
  model = models.make("dense")
  graph, params = nnx.split(model)
  flat, tree = jax.tree.flatten(params)

  @oracles.quick_jit
  def step(flat, tokens, cache):
    model = nnx.merge(graph, jax.tree.unflatten(tree, flat))
    return model(tokens, cache=cache)

  operands = flat, jnp.array([[3], [5]]), model.init_cache(2, 4)
  data = jax.export.export(step)(*operands).serialize()
  logits, cache = jax.export.deserialize(data).call(*operands)
  truth, whole = step(*operands)
  assert isinstance(cache, ModelCache)
  np.testing.assert_array_equal(logits, truth)
  jax.tree.map(np.testing.assert_array_equal, cache, whole)


@pytest.mark.parametrize(
  "kind, length",
  [
    ("dense", 64),
    ("sparse", 1),
    pytest.param("dense", 1, marks=pytest.mark.slow),
    pytest.param("sparse", 64, marks=pytest.mark.slow),
  ],
)
def test_a_step_in_xla_is_exported_for_every_platform(kind, length):
  """With no check of `jax.export` disabled, whatever the layers are made of."""
  rule = RuleOptions(chunk_size=16, implementation="xla")
  model = abstract_model(models.CONFIGS[kind], Execution(rule=rule))
  graph, params = nnx.split(model)
  flat, tree = jax.tree.flatten(params)

  def step(flat, tokens, cache):
    model = nnx.merge(graph, jax.tree.unflatten(tree, flat))
    return model(tokens, cache=cache)

  cache = jax.eval_shape(lambda: model.init_cache(2, 128))
  tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
  platforms = ("cpu", "cuda", "tpu")
  with oracles.on_a_gpu():
    exported = jax.export.export(jax.jit(step), platforms=platforms)
    assert exported(flat, tokens, cache).platforms == platforms


@pytest.mark.slow
def test_a_prefill_is_exported_for_any_batch():
  """Of a fixed length; a mesh, which asks for numbers, is not in use."""
  pytest.importorskip("flatbuffers")
  rule = RuleOptions(chunk_size=8, implementation="xla")
  model = models.make("dense", Execution(rule=rule))
  graph, params = nnx.split(model)
  flat, tree = jax.tree.flatten(params)

  @oracles.quick_jit
  def forward(flat, tokens):
    model = nnx.merge(graph, jax.tree.unflatten(tree, flat))
    return model(tokens)[0]

  (batch,) = jax.export.symbolic_shape("b")
  tokens = jax.ShapeDtypeStruct((batch, 12), jnp.int32)
  program = jax.export.deserialize(
    jax.export.export(forward)(flat, tokens).serialize()
  )
  for rows in (1, 3):
    tokens = np.arange(12 * rows, dtype=np.int32).reshape(rows, 12)
    want = forward(flat, tokens)
    oracles.assert_close(program.call(flat, tokens), want, oracles.PARITY)


def test_a_rule_is_exported_for_any_batch():
  """With documents and a state to begin with."""
  (batch,) = jax.export.symbolic_shape("b")
  shape = lambda *axes: jax.ShapeDtypeStruct((batch, *axes), jnp.float32)  # noqa: E731
  keys, values, gates = shape(12, 1, 4), shape(12, 2, 4), shape(12, 2)
  rule = functools.partial(gated_delta_rule, chunk_size=8, implementation="xla")
  program = jax.export.export(jax.jit(rule))(
    *(keys, keys, values, gates, gates),
    initial_state=shape(2, 4, 4),
    segment_ids=jax.ShapeDtypeStruct((batch, 12), jnp.int32),
  )
  assert [x.shape[0] for x in program.out_avals] == [batch, batch]


@pytest.mark.parametrize(
  "kind, words", [("dense", "axis T must be a num"), ("sparse", "with experts")]
)
def test_what_must_be_a_number_in_an_exported_program(kind, words):
  graph, params = nnx.split(abstract_model(models.CONFIGS[kind], Execution()))
  flat, tree = jax.tree.flatten(params)
  axis = jax.export.symbolic_shape("n")
  shape = (1, *axis) if kind == "dense" else (*axis, 12)

  def forward(flat, tokens):
    return nnx.merge(graph, jax.tree.unflatten(tree, flat))(tokens)[0]

  tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
  with oracles.refused(ValueError, words):
    jax.export.export(jax.jit(forward))(flat, tokens)


@pytest.mark.parametrize("scanned", [False, True])
def test_a_cache_keeps_its_types_under_x64(scanned):
  """A cache that changed a type would have the next step compiled again."""
  with jax.enable_x64(True):
    execution = Execution(scan_layers=scanned)
    model = nnx.eval_shape(
      lambda: LanguageModel(models.CONFIGS["deep"], execution, rngs=nnx.Rngs(0))
    )
    graph, params = nnx.split(model)
    cache = jax.eval_shape(lambda: model.init_cache(2, 8))
    kinds = lambda cache: [x.dtype for x in jax.tree.leaves(cache)]  # noqa: E731
    for mask in (None, jnp.ones((2, 3), bool)):
      call = functools.partial(
        lambda params, cache, mask: nnx.merge(graph, params)(
          jnp.ones((2, 3), jnp.int32), cache=cache, mask=mask
        ),
        mask=mask,
      )
      _, new = jax.eval_shape(call, params, cache)
      assert kinds(new) == kinds(cache)
    assert not {np.dtype("int64"), np.dtype("float64")} & set(kinds(cache))


def places(make, mesh):
  """Spec of every parameter of a model on a mesh, made of shapes alone."""
  state = sharding.param_shardings(nnx.eval_shape(make), mesh)
  paths = [path for path, _ in nnx.to_flat_state(state)]
  leaves = jax.tree.leaves(state)
  return {path: leaf.spec for path, leaf in zip(paths, leaves, strict=True)}


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("name", ["W4A16", "W8-g128"])
def test_quantised_weights_are_split_as_the_weights(name, kind):
  mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
  plain = functools.partial(models.make, kind)
  whole = places(plain, mesh)
  split = 0
  small = places(lambda: quantize_weights(plain(), preset(name)), mesh)
  for path, spec in small.items():
    if path[-1] == "codes":
      assert spec == whole[path[:-1]], path
      split += any(spec)
    elif path[-1] == "scale":  # one group of rows, which stays whole
      *rest, _, last = whole[path[:-1]]
      assert tuple(spec) == (*rest, None, last), path
    else:
      assert spec == whole[path], path
  assert split > 10
