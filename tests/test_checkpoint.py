"""Directories of Hugging Face and of Orbax: what is saved is read again."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from neumann_jax import Execution, checkpoint
from neumann_jax.checkpoint import safetensors_io
from neumann_jax.checkpoint.params import (
  abstract_model,
  flat_params,
  with_params,
)
from neumann_jax.model.scan_layers import stack_layers, unstack_layers
from tests import oracles
from tests.checkpoints import (
  CONFIGS,
  SCANNED,
  SINGLE,
  assert_free,
  assert_same,
  model_of,
  saved,
  tensors_in,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_save_and_load(tmp_path, name):
  model = model_of(name)
  path = saved(tmp_path, name)
  assert sorted(x.name for x in path.iterdir()) == ["config.json", SINGLE]
  assert checkpoint.read_config(path) == model.config
  found = checkpoint.load(path)
  assert_same(found, model)
  assert_free(found)


def test_scanned_layers_are_the_same_checkpoint(tmp_path):
  path = saved(tmp_path, "mixed")
  scanned = checkpoint.load(path, SCANNED)
  assert_same(scanned, stack_layers(model_of("mixed")))
  assert_free(scanned)
  checkpoint.save(scanned, tmp_path / "again")
  again = (tmp_path / "again" / SINGLE).read_bytes()
  assert again == (path / SINGLE).read_bytes()


@pytest.mark.parametrize("name", ["moe", "mixed"])
def test_stacking_and_back(name):
  model = model_of(name)
  stacked = stack_layers(model)
  assert stacked.execution.scan_layers and not model.execution.scan_layers
  assert len(stacked.layers) == 4
  for _, node in nnx.iter_graph(stacked):
    if hasattr(node, "execution"):
      assert node.execution.scan_layers
  assert_same(unstack_layers(stacked), model)


@pytest.mark.slow
def test_stacked_layers_compute_the_same():
  tokens = np.arange(10, dtype=np.int32)[None]
  model = model_of("moe")
  call = oracles.quick_jit(lambda model: model(tokens)[0])
  oracles.assert_close(call(stack_layers(model)), call(model), oracles.PARITY)


def test_shards(tmp_path):
  limit = 10_000
  path = saved(tmp_path, "next", max_shard_bytes=limit)
  index = json.loads((path / safetensors_io.INDEX).read_text())
  files = sorted(path.glob("*.safetensors"))
  assert len(files) > 2
  assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
  held = {file.name: load_file(file) for file in files}
  for tensors in held.values():
    size = sum(x.nbytes for x in tensors.values())
    assert size <= limit or len(tensors) == 1
  homes = {name: file for file, tensors in held.items() for name in tensors}
  assert homes == index["weight_map"]
  whole = tensors_in_one(tmp_path)
  assert set(homes) == set(whole)
  total = sum(x.nbytes for x in whole.values())
  assert index["metadata"]["total_size"] == total
  assert_same(checkpoint.load(path), model_of("next"))


def tensors_in_one(folder):
  checkpoint.save(model_of("next"), folder / "one")
  return tensors_in(folder / "one")


def test_saving_is_deterministic(tmp_path):
  for name in ("a", "b"):
    checkpoint.save(model_of("moe"), tmp_path / name, max_shard_bytes=9_000)
  files = sorted(x.name for x in (tmp_path / "a").iterdir())
  assert files == sorted(x.name for x in (tmp_path / "b").iterdir())
  for file in files:
    first = (tmp_path / "a" / file).read_bytes()
    assert first == (tmp_path / "b" / file).read_bytes()


def test_models_of_one_trace_share_nothing():
  one = abstract_model(CONFIGS["dense"], Execution())
  one.set_execution(Execution(remat="full"))
  other = abstract_model(CONFIGS["dense"], Execution())
  assert other.execution == Execution()
  assert one.execution == Execution(remat="full")


def test_dtypes(tmp_path):
  narrow = Execution(param_dtype=jnp.bfloat16)
  path = saved(tmp_path, "moe")
  model = checkpoint.load(path, narrow)
  found = flat_params(model)
  for place, x in flat_params(model_of("moe")).items():
    wide = place[-1] in ("A_log", "dt_bias")
    want = np.asarray(x)
    want = want if wide else want.astype(jnp.bfloat16)
    assert found[place].dtype == want.dtype
    np.testing.assert_array_equal(found[place], want)
  checkpoint.save(model, tmp_path / "narrow")
  stored = json.loads((tmp_path / "narrow" / "config.json").read_text())
  assert stored["dtype"] == "bfloat16"
  assert_same(checkpoint.load(tmp_path / "narrow", narrow), model)
  checkpoint.save_orbax(model, tmp_path / "orbax")
  assert_same(checkpoint.restore_orbax(tmp_path / "orbax", narrow), model)


@pytest.mark.parametrize(
  "scanned", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_orbax(tmp_path, scanned):
  model = model_of("mixed")
  stacked = stack_layers(model)
  path = tmp_path / "orbax"
  checkpoint.save_orbax(stacked if scanned else model, path)
  assert [x.name for x in tmp_path.iterdir()] == ["orbax"]
  for execution, want in ((Execution(), model), (SCANNED, stacked)):
    found = checkpoint.restore_orbax(path, execution)
    assert_same(found, want)
    assert_free(found)


@pytest.mark.slow
def test_a_training_step_on_what_was_read_compiles_once(tmp_path):
  """Arrays on no device by choice, as those that a user makes beside them."""
  config = dataclasses.replace(
    CONFIGS["dense"],
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
  )
  params = flat_params(abstract_model(config, Execution()))
  made = {path: jnp.zeros(x.shape, x.dtype) for path, x in params.items()}
  made = with_params(abstract_model(config, Execution()), made)
  checkpoint.save(made, tmp_path / "hf")
  checkpoint.save_orbax(made, tmp_path / "orbax")
  tokens = jnp.zeros((1, 3), jnp.int32)

  @oracles.quick_jit
  def step(state):
    model, optimizer = nnx.merge(graph, state)
    gradient = nnx.grad(lambda m: jnp.sum(m(tokens)[0] ** 2))(model)
    optimizer.update(model, gradient)
    return nnx.state((model, optimizer))

  for model in (
    checkpoint.load(tmp_path / "hf"),
    checkpoint.restore_orbax(tmp_path / "orbax"),
  ):
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, 0.9), wrt=nnx.Param)
    graph, state = nnx.split((model, optimizer))
    for _ in range(2):
      state = step(state)
  assert step._cache_size() == 1


def shardings_over(mesh):
  """Splits every last axis that can be split, but for rows of a stack."""

  def one(x):
    ways = x.shape[-1] % mesh.size == 0
    spec = [None] * (len(x.shape) - 1) + ["data" if ways else None]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return lambda model: jax.tree.map(one, nnx.state(model))


@pytest.mark.slow
@pytest.mark.parametrize("execution", [Execution(), SCANNED])
def test_loading_onto_a_mesh(tmp_path, execution):
  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
  shardings = shardings_over(mesh)
  want = model_of("next")
  checkpoint.save(want, tmp_path / "hf")
  checkpoint.save_orbax(want, tmp_path / "orbax")
  want = stack_layers(want) if execution.scan_layers else want
  for read, path in (
    (checkpoint.load, tmp_path / "hf"),
    (checkpoint.restore_orbax, tmp_path / "orbax"),
  ):
    model = read(path, execution, shardings=shardings)
    assert_same(model, want)
    places = jax.tree.leaves(shardings(model))
    split = 0
    for x, place in zip(flat_params(model).values(), places, strict=True):
      assert x.sharding.is_equivalent_to(place, x.ndim)
      split += not x.is_fully_replicated
    assert split > 10
  checkpoint.save(model, tmp_path / "again")
  whole = (tmp_path / "hf" / SINGLE).read_bytes()
  assert (tmp_path / "again" / SINGLE).read_bytes() == whole


def test_wrong_number_of_shardings(tmp_path):
  path = saved(tmp_path, "dense")
  with oracles.refused(ValueError, "shardings must give one for each of the"):
    checkpoint.load(path, shardings=lambda model: [])


@pytest.mark.slow
def test_host_memory_is_a_few_tensors(tmp_path):
  config = dataclasses.replace(
    CONFIGS["dense"],
    hidden_size=128,
    intermediate_size=1024,
    layer_types=(),
    num_hidden_layers=16,
  )
  shapes = abstract_model(config, SCANNED)
  zeros = {k: jnp.zeros(x.shape) for k, x in flat_params(shapes).items()}
  checkpoint.save(with_params(shapes, zeros), tmp_path / "big")
  total = (tmp_path / "big" / SINGLE).stat().st_size
  largest = 128 * 1024 * 4
  checkpoint.load(tmp_path / "big", SCANNED)  # compiles
  tracemalloc.start()
  checkpoint.load(tmp_path / "big", SCANNED)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # As stored, as laid out, as cast; and the tables of names.
  assert peak < 3 * largest + 2_000_000 < total / 4


@pytest.mark.parametrize(
  "act, sentence",
  [
    (
      lambda: stack_layers(stack_layers(model_of("dense"))),
      "stack_layers needs separate layers, got scanned ones",
    ),
    (
      lambda: unstack_layers(model_of("dense")),
      "unstack_layers needs scanned layers, got separate ones",
    ),
  ],
)
def test_stacking_refused(act, sentence):
  with oracles.refused(ValueError, sentence):
    act()


def test_layers_that_do_not_repeat_are_not_stacked():
  config = dataclasses.replace(
    CONFIGS["dense"], num_hidden_layers=4, layer_types=()
  )
  model = abstract_model(config, Execution())
  with oracles.refused(ValueError, "needs layers that repeat, but none of the"):
    stack_layers(model)
