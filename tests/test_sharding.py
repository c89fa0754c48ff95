"""A model on eight virtual devices against the same model on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax import checkpoint, sharding
from neumann_jax.layers import placement
from neumann_jax.weight_quantization import preset, quantize_weights
from tests import models, oracles

MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "tensor": {"tensor": 4},
  "sequence": {"sequence": 8},
  "rows": {"data": 2, "fsdp": 2, "tensor": 2},
  "all": {"fsdp": 2, "tensor": 2, "sequence": 2},
}


def _logits(model, tokens, segment_ids):
  return model(tokens, segment_ids=segment_ids)[0]


def _loss(forward, model, tokens, segment_ids):
  """Mean negative log-likelihood of the next token, and the logits."""
  logits = forward(model, tokens, segment_ids)
  scores = jax.nn.log_softmax(logits[:, :-1])
  picked = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)
  return -jnp.mean(picked), logits


@functools.partial(oracles.quick_jit, static_argnums=(0, 1))
def _value_and_grad(forward, graph, state, tokens, segment_ids):
  def loss(state):
    return _loss(forward, nnx.merge(graph, state), tokens, segment_ids)

  (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(state)
  return logits, gradient


def _run(forward, model, tokens, segment_ids):
  return _value_and_grad(forward, *nnx.split(model), tokens, segment_ids)


def _data(rows=8, length=64, packed=True):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, models.VOCABULARY, (rows, length))
  ids = np.sort(rng.integers(0, 4, (rows, length)), axis=1)
  ids = jnp.asarray(ids, jnp.int32) if packed else None
  return jnp.asarray(tokens, jnp.int32), ids


@functools.cache
def _single(kind, packed):
  model = models.trained_like(kind)
  return model, _run(_logits, model, *_data(packed=packed))


def _on(mesh, model):
  """The model on the mesh, and its forward pass there."""
  model = sharding.place(model, mesh)
  if mesh.shape["sequence"] == 1:
    return model, _logits
  model = model.with_execution(sequence_axis="sequence")
  return model, sharding.on_mesh(mesh, _logits)


def _compare(kind, sizes, packed, tolerance):
  mesh = sharding.make_mesh(**sizes)
  model, want = _single(kind, packed)
  model, forward = _on(mesh, model)
  data = jax.device_put(_data(packed=packed), sharding.batch_sharding(mesh))
  logits, gradient = _run(forward, model, *data)
  assert oracles.whole_error(logits, want[0]) <= tolerance
  error = oracles.whole_error(gradient, want[1])
  assert error <= oracles.FLOAT32_SHARDED_GRADIENT


@pytest.mark.parametrize(
  "name, packed",
  [
    ("all", True),
    pytest.param("fsdp", False, marks=pytest.mark.slow),
    pytest.param("sequence", True, marks=pytest.mark.slow),
  ],
)
def test_values_and_gradients_are_those_of_one_device(name, packed):
  _compare("dense", MESHES[name], packed, oracles.FLOAT32_SHARDED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("name", MESHES)
def test_more_meshes(kind, name):
  _compare(kind, MESHES[name], False, oracles.FLOAT32_SHARDED)
  _compare(kind, MESHES[name], True, oracles.FLOAT32_SHARDED_PACKED)


@pytest.mark.parametrize(
  "axis", [pytest.param("fsdp", marks=pytest.mark.slow), "tensor"]
)
def test_devices_send_weights_and_sums_and_no_columns(axis):
  """fsdp: matrices alone; tensor: what a block adds to the residual stream."""
  length, hidden = 104, 64  # a length that is no width
  mesh = sharding.make_mesh(**{axis: 2})
  model = sharding.place(models.trained_like("dense"), mesh)
  graph, state = nnx.split(model)
  tokens = jax.ShapeDtypeStruct(
    (4, length), jnp.int32, sharding=sharding.batch_sharding(mesh)
  )

  def loss(state, tokens):
    hidden, _ = nnx.merge(graph, state).hidden_states(tokens)
    return jnp.mean(jnp.sin(hidden))

  step = oracles.quick_jit(jax.grad(loss)).lower(state, tokens)
  sent = re.findall(
    r"= (.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)\(",
    step.compile().as_text(),
  )
  found = {
    shape
    for shapes in sent
    for shape in re.findall(r"\[([\d,]+)\]", shapes)
    if f",{length}" in shape
  }
  assert sent
  sums = {f"4,{length},{hidden}", f"4,{length}"}
  assert found <= (sums if axis == "tensor" else set()), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_scales_of_quantised_matrices_keep_their_bits_on_a_mesh(kind):
  """What is gathered is what one device multiplies with."""
  half = neumann_jax.Execution(dtype="bfloat16", param_dtype="bfloat16")
  model = quantize_weights(models.trained_like(kind, half), preset("W8"))
  tokens, _ = _data(length=32)
  call = oracles.quick_jit(lambda model, tokens: model(tokens)[0])
  want = call(model, tokens)
  mesh = sharding.make_mesh(fsdp=2)
  placed = sharding.place(model, mesh)
  found = call(placed, jax.device_put(tokens, sharding.batch_sharding(mesh)))
  # A rounding of bfloat16 or two, of sums in another order.
  assert oracles.whole_error(found, want) < 2**-7


@pytest.mark.parametrize("rows", [4, 3])
def test_rows_stay_where_other_axes_split_them(rows):
  """Of a mesh whose axes have other names, and of rows that do not divide."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("batch",))
  if rows == 3:
    mesh = sharding.make_mesh(data=2)
  x = jnp.zeros((rows, 4, 8))
  where = jax.NamedSharding(mesh, P("batch" if rows == 4 else None))
  by_rows = jax.jit(lambda x: placement.by_rows(2 * x, ("data", "fsdp")))
  found = by_rows(jax.device_put(x, where))
  assert found.sharding.is_equivalent_to(where, 3)


def test_a_checkpoint_is_read_onto_a_mesh(tmp_path):
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  model = models.trained_like("dense")
  checkpoint.save(model, tmp_path / "model")
  shardings = functools.partial(sharding.param_shardings, mesh=mesh)
  found = checkpoint.load(tmp_path / "model", shardings=shardings)
  kernel = found.layers[0].mlp.up_proj.kernel[...]
  assert kernel.sharding.spec == P("fsdp", "tensor")
  oracles.assert_close(nnx.state(found), nnx.state(model), 0)


def test_parameters_are_split_as_the_rules_say():
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  model = sharding.place(models.trained_like("sparse"), mesh)
  found = {
    "/".join(map(str, path)): variable[...].sharding.spec
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }
  want = {
    "embed_tokens/embedding": P("tensor", "fsdp"),
    "lm_head/kernel": P("fsdp", "tensor"),
    "layers/0/linear_attn/in_proj_qkv/kernel": P("fsdp", "tensor"),
    "layers/0/linear_attn/conv1d": P(None, "tensor"),
    "layers/0/linear_attn/A_log": P("tensor"),
    "layers/0/linear_attn/out_proj/kernel": P("tensor", "fsdp"),
    "layers/1/self_attn/o_proj/kernel": P("tensor", "fsdp"),
    "layers/0/mlp/experts/gate_up_proj": P(None, "fsdp", "tensor"),
    "layers/0/mlp/shared_expert/down_proj/kernel": P("tensor", "fsdp"),
    "layers/0/input_layernorm/weight": P(None),
  }
  assert {name: found[name] for name in want} == want
  whole = {name for name, spec in found.items() if not any(spec)}
  assert all(
    "norm" in name or name.endswith(("mlp/gate/kernel", "expert_gate/kernel"))
    for name in whole
  )


def test_what_an_axis_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(tensor=8)
  model = nnx.eval_shape(lambda: models.make("dense"))
  specs = dict(nnx.to_flat_state(sharding.param_specs(model, mesh)))
  # 4 value heads, 8 devices.
  assert specs[("layers", 0, "linear_attn", "A_log")] == P(None)


def test_a_stack_of_layers_is_not_split():
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  execution = neumann_jax.Execution(scan_layers=True)
  model = nnx.eval_shape(lambda: models.make("deep", execution))
  specs = dict(nnx.to_flat_state(sharding.param_specs(model, mesh)))
  path = ("layers", 0, "linear_attn", "in_proj_z", "kernel")
  assert specs[path] == P(None, "fsdp", "tensor")


def test_created_where_it_belongs_with_the_same_values():
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  config = models.CONFIGS["dense"]
  execution = neumann_jax.Execution()
  made = sharding.create(config, execution, mesh, seed=3)
  want = neumann_jax.LanguageModel(config, execution, rngs=nnx.Rngs(3))
  specs = nnx.to_flat_state(sharding.param_specs(want, mesh))
  found = nnx.to_flat_state(nnx.state(made))
  for (path, variable), (_, spec) in zip(found, specs):
    assert variable[...].sharding.spec == spec, path
  oracles.assert_close(nnx.state(made), nnx.state(want), 1e-6)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: sharding.make_mesh(data=0), "data must be at least 1, got 0"),
    (lambda: sharding.make_mesh(data=9), "needs 9 devices, got 8"),
    (
      lambda: sharding.param_specs(
        models.make("dense"), sharding.make_mesh(), {"embed": "rows"}
      ),
      "rules send 'embed' to mesh axis 'rows'",
    ),
    (
      lambda: sharding.on_mesh(sharding.make_mesh(sequence=2), _logits)(
        models.make("dense"), *_data()
      ),
      "execution.sequence_axis must be 'sequence'",
    ),
    (
      lambda: sharding.on_mesh(sharding.make_mesh(sequence=8), _logits)(
        models.make("dense").with_execution(sequence_axis="sequence"),
        *_data(length=60),
      ),
      "whole multiple of the 8 shards",
    ),
    (
      lambda: models.make("dense").with_execution(sequence_axis="sequence")(
        _data()[0]
      ),
      "axis 'sequence' is unknown here",
    ),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    call()
