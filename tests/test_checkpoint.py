"""Directories of Hugging Face and of Orbax: round trips and refusals."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import resource
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from neumann_jax import Execution, ModelConfig, Yarn, checkpoint
from neumann_jax.checkpoint import (
  hf_layout,
  safetensors_io,
  safetensors_shards,
)
from neumann_jax.checkpoint.hf_config import (
  from_json,
  to_json,
  to_whole_json,
)
from neumann_jax.checkpoint.params import (
  abstract_model,
  flat_params,
  with_params,
)
from neumann_jax.model.scan_layers import stack_layers, unstack_layers
from tests import oracles

SMALL = {
  "vocab_size": 24,
  "hidden_size": 16,
  "num_hidden_layers": 8,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 16,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 6,
  "linear_key_head_dim": 4,
  "linear_value_head_dim": 5,
}
EXPERTS = {
  "num_experts": 3,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 6,
  "shared_expert_intermediate_size": 7,
}
CONFIGS = {
  "dense": ModelConfig(**SMALL, intermediate_size=20, tie_word_embeddings=True),
  "biased": ModelConfig(**SMALL, intermediate_size=20, attention_bias=True),
  "moe": ModelConfig(**SMALL, **EXPERTS, intermediate_size=0),
  "next": ModelConfig(
    **SMALL, **EXPERTS, intermediate_size=20, model_type="qwen3_next"
  ),
  "mixed": ModelConfig(
    **SMALL,
    **EXPERTS,
    intermediate_size=20,
    norm_topk_prob=False,
    mlp_only_layers=(1, 5),
    rope_theta=5e5,
    partial_rotary_factor=0.5,
  ),
}
SCANNED = Execution(scan_layers=True)
SINGLE = "model.safetensors"


@functools.lru_cache
def model_of(name, execution=Execution()):  # noqa: B008
  """Random parameters without a compilation."""
  model = abstract_model(CONFIGS[name], execution)
  rng = np.random.default_rng(0)
  return with_params(
    model,
    {
      path: jnp.asarray(rng.normal(size=x.shape), x.dtype)
      for path, x in flat_params(model).items()
    },
  )


def assert_same(found, want):
  """Two models agree in everything, bit by bit."""
  assert found.config == want.config
  assert found.execution == want.execution
  found, want = flat_params(found), flat_params(want)
  assert list(found) == list(want)
  for path, x in want.items():
    assert found[path].dtype == x.dtype, path
    np.testing.assert_array_equal(found[path], x)


def assert_free(model):
  """No parameter is bound to a device, as nothing was said of devices."""
  assert not any(x.committed for x in flat_params(model).values())


def saved(folder, name, **options):
  path = folder / name
  checkpoint.save(model_of(name), path, **options)
  return path


def tensors_in(path):
  return load_file(path / SINGLE)


def rewrite(path, tensors):
  save_file(tensors, path / SINGLE, metadata={"format": "pt"})


def edit_config(path, **changes):
  file = path / "config.json"
  config = json.loads(file.read_text()) | changes
  config = {key: value for key, value in config.items() if value is not ...}
  file.write_text(json.dumps(config))


# --- Round trips -------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["moe", "next"])
def test_fused_and_separate_experts(tmp_path, name):
  path = saved(tmp_path, name)
  tensors = tensors_in(path)
  fused = any(key.endswith("experts.down_proj") for key in tensors)
  assert fused == (name == "moe")
  other = {}
  for tensor in hf_layout.tensors(CONFIGS[name]):
    if not tensor.pieces:
      other[tensor.name] = tensors[tensor.name]
    elif fused:
      for piece in tensor.pieces:
        part = tensors[tensor.name][piece.place]
        other[piece.name] = np.ascontiguousarray(part)
    else:
      parts = {p.name: tensors[p.name] for p in tensor.pieces}
      other[tensor.name] = by_hand(tensor.name, parts, EXPERTS["num_experts"])
  assert set(other) != set(tensors)
  rewrite(path, other)
  assert_same(checkpoint.load(path), model_of(name))


def by_hand(name, parts, experts):
  """Fused experts as the conversion rules of transformers state them."""
  base, leaf = name.rsplit(".", 1)
  get = lambda e, part: parts[f"{base}.{e}.{part}.weight"]  # noqa: E731
  if leaf == "down_proj":
    return np.stack([get(e, "down_proj") for e in range(experts)])
  gate = np.stack([get(e, "gate_proj") for e in range(experts)])
  up = np.stack([get(e, "up_proj") for e in range(experts)])
  return np.concatenate([gate, up], axis=1)


@pytest.mark.parametrize(
  "name, outer", [("dense", "qwen3_5"), ("moe", "qwen3_5_moe")]
)
def test_vision_language_directories(tmp_path, name, outer):
  path = saved(tmp_path, name)
  config = json.loads((path / "config.json").read_text())
  tied = config.pop("tie_word_embeddings")
  nested = {"text_config": config, "vision_config": {"depth": 1}}
  nested |= {"model_type": outer, "tie_word_embeddings": tied}
  (path / "config.json").write_text(json.dumps(nested))
  tensors = {
    key.replace("model.", "model.language_model.", 1): x
    for key, x in tensors_in(path).items()
  }
  for key in ("mtp.fc.weight", "model.visual.patch.weight", "visual.norm"):
    tensors[key] = np.ones((2, 2), np.float32)
  rewrite(path, tensors)
  inside = dataclasses.replace(CONFIGS[name], vision_language=True)
  want = abstract_model(inside, Execution())
  want = with_params(want, flat_params(model_of(name)))
  assert_same(checkpoint.load(path), want)
  # A text model's class can have the config of the whole.
  nested["architectures"] = ["Qwen3_5ForCausalLM"]
  (path / "config.json").write_text(json.dumps(nested))
  assert not checkpoint.read_config(path).vision_language
  # Orbax keeps which it was.
  assert from_json(to_whole_json(inside, np.dtype("float32"))) == inside
  with oracles.refused(
    ValueError, "vision_language must be False for qwen3_ne"
  ):
    dataclasses.replace(inside, model_type="qwen3_next")


def test_tied_output_matrix_may_be_stored(tmp_path):
  path = saved(tmp_path, "dense")
  tensors = tensors_in(path)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
  rewrite(path, tensors)
  assert_same(checkpoint.load(path), model_of("dense"))
  tensors["lm_head.weight"][3, 5] += 1
  rewrite(path, tensors)
  with oracles.refused(ValueError, "lm_head.weight .* must equal the embedd"):
    checkpoint.load(path)


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


@pytest.mark.parametrize("scanned", [False, True])
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


@pytest.mark.parametrize(
  "execution", [Execution(), pytest.param(SCANNED, marks=pytest.mark.slow)]
)
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


# --- Layouts -----------------------------------------------------------------

# Key and value heads of Gated DeltaNet as published, all of width 128.
PUBLISHED = {
  "Qwen3.5-0.8B": (16, 16),
  "Qwen3.5-2B": (16, 16),
  "Qwen3.5-4B": (16, 32),
  "Qwen3.5-9B": (16, 32),
  "Qwen3.5-27B": (16, 48),
  "Qwen3.5-35B-A3B": (16, 32),
  "Qwen3.5-122B-A10B": (16, 64),
  "Qwen3.5-397B-A17B": (16, 64),
  "Qwen3-Next-80B-A3B": (16, 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_head_layouts(name):
  keys, values = PUBLISHED[name]
  hidden, width = 4, 128
  options = EXPERTS if name[-3:-1] in ("A3", "17", "10") else {}
  options |= {"model_type": "qwen3_next"} if "Next" in name else {}
  config = ModelConfig(
    hidden_size=hidden,
    linear_num_key_heads=keys,
    linear_num_value_heads=values,
    linear_key_head_dim=width,
    linear_value_head_dim=width,
    **options,
  )
  tensors = hf_layout.tensors(config)
  start = "model.layers.0.linear_attn."
  found = {
    t.name.removeprefix(start): t.shape
    for t in tensors
    if t.name.startswith(start)
  }
  value_dim = values * width
  conv_dim = 2 * keys * width + value_dim
  want = {
    "conv1d.weight": (conv_dim, 1, 4),
    "A_log": (values,),
    "dt_bias": (values,),
    "norm.weight": (width,),
    "out_proj.weight": (hidden, value_dim),
  }
  if "Next" in name:
    rows = 2 * keys * width + 2 * value_dim
    want["in_proj_qkvz.weight"] = (rows, hidden)
    want["in_proj_ba.weight"] = (2 * values, hidden)
  else:
    want["in_proj_qkv.weight"] = (conv_dim, hidden)
    want["in_proj_z.weight"] = (value_dim, hidden)
    want["in_proj_b.weight"] = want["in_proj_a.weight"] = (values, hidden)
  assert found == want
  shapes = flat_params(abstract_model(config, Execution()))
  held = []
  for tensor in tensors:
    x = np.arange(np.prod(tensor.shape), dtype=np.float32)
    x = x.reshape(tensor.shape)
    parts = tensor.split(x)
    for path, part in zip(tensor.params, parts, strict=True):
      assert part.shape == shapes[path].shape, path
    np.testing.assert_array_equal(tensor.join(*parts), x)
    held += tensor.params
  assert sorted(map(str, held)) == sorted(map(str, shapes))


def test_key_head_layout_row_by_row():
  """Rows of Qwen3-Next's q|k|v|z and b|a, by the loop that defines them."""
  config = CONFIGS["next"]
  hk, r, dk, dv = 2, 3, 4, 5
  qkvz, ba = (
    next(t for t in hf_layout.tensors(config) if t.name.endswith(suffix))
    for suffix in ("in_proj_qkvz.weight", "in_proj_ba.weight")
  )
  x = np.random.default_rng(0).normal(size=qkvz.shape)
  qkv, z = qkvz.split(x)
  row = 0
  for head in range(hk):
    for target, start, size in (
      (qkv, head * dk, dk),
      (qkv, hk * dk + head * dk, dk),
      (qkv, 2 * hk * dk + head * r * dv, r * dv),
      (z, head * r * dv, r * dv),
    ):
      for i in range(start, start + size):
        np.testing.assert_array_equal(target[:, i], x[row])
        row += 1
  assert row == len(x)
  x = np.random.default_rng(1).normal(size=ba.shape)
  b, a = ba.split(x)
  for head in range(hk):
    for i in range(r):
      np.testing.assert_array_equal(b[:, head * r + i], x[2 * r * head + i])
      np.testing.assert_array_equal(a[:, head * r + i], x[2 * r * head + r + i])


# --- Configs -----------------------------------------------------------------


def test_legacy_and_defaulted_configs(tmp_path):
  path = saved(tmp_path, "moe")
  want = CONFIGS["moe"]
  edit_config(path, layer_types=..., rms_norm_eps=..., attention_bias=None)
  assert checkpoint.read_config(path) == want
  rope = {"rope_type": "default", "mrope_section": [1, 1], "rope_theta": 10}
  edit_config(path, rope_parameters=rope)
  read = checkpoint.read_config(path)
  assert (read.rope_theta, read.partial_rotary_factor) == (10.0, 0.25)
  edit_config(path, rope_parameters=..., rope_theta=7, rope_scaling=None)
  edit_config(path, partial_rotary_factor=0.5, attn_output_gate=True)
  read = checkpoint.read_config(path)
  assert (read.rope_theta, read.partial_rotary_factor) == (7.0, 0.5)
  edit_config(path, full_attention_interval=2)
  kinds = checkpoint.read_config(path).layer_types
  assert kinds == ("linear_attention", "full_attention") * 4


@pytest.mark.parametrize(
  "changes, sentence",
  [
    ({"model_type": "llama"}, "model_type must be one of .* got 'llama'"),
    ({"model_type": ...}, "model_type must be one of .* got None"),
    ({"model_type": "qwen3_5"}, "text_config must be an object"),
    (
      {"model_type": "qwen3_5", "text_config": {"model_type": "qwen3"}},
      "model_type of text_config must be qwen3_5_text, got 'qwen3'",
    ),
    ({"hidden_act": "gelu"}, 'hidden_act must be "silu".*got "gelu"'),
    ({"attn_output_gate": False}, "attn_output_gate must be true"),
    ({"mamba_ssm_dtype": "bfloat16"}, 'mamba_ssm_dtype must be "float32"'),
    ({"norm_topk_prob": False}, "norm_topk_prob must be true"),
    ({"mlp_only_layers": [1]}, r"mlp_only_layers must be \[\]"),
    ({"quantization_config": {"bits": 8}}, "quantization_config must be abse"),
    (
      {"rope_parameters": {"rope_type": "dynamic", "factor": 4}},
      'rope_type must be "default" or "yarn", got "dynamic"',
    ),
    ({"rope_scaling": {"type": "linear"}}, 'rope_type must be .* got "linear"'),
    ({"head_dim": ...}, "a qwen3_5_moe_text model needs head_dim"),
    ({"hidden_size": "64"}, 'hidden_size must be an integer, got "64"'),
    ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a number, got true"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    ({"layer_types": ["mamba"] * 8}, "layer_types must be of .* got 'mamba'"),
    (
      {"layer_types": ..., "full_attention_interval": 0},
      "full_attention_interval must be at least 1",
    ),
    ({"num_experts": 0}, "intermediate_size must be at least 1 where a layer"),
  ],
)
def test_configs_refused(tmp_path, changes, sentence):
  path = saved(tmp_path, "moe")
  edit_config(path, **changes)
  with oracles.refused(ValueError, sentence):
    checkpoint.load(path)


def test_config_files_refused(tmp_path):
  with oracles.refused(FileNotFoundError, "names on a hub are not fetched"):
    checkpoint.load("Qwen/Qwen3.5-0.8B")
  with oracles.refused(TypeError, "execution must be an Execution, .* 'bf16'"):
    checkpoint.load(tmp_path, "bf16")
  with oracles.refused(TypeError, "execution must be an Execution, .* 'bf16'"):
    checkpoint.restore_orbax(tmp_path, "bf16")
  with oracles.refused(FileNotFoundError, r"path must hold a config\.json"):
    checkpoint.load(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": ')
  with oracles.refused(ValueError, r"config\.json is not JSON"):
    checkpoint.load(tmp_path)
  (tmp_path / "config.json").write_text("[]")
  with oracles.refused(ValueError, r"config\.json must hold a JSON object"):
    checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["moe", "next"])
def test_what_files_say_of_longer_sequences_and_of_gates(tmp_path, name):
  yarn = Yarn(4.0, 262144, mscale=1.0, mscale_all_dim=0.5, truncate=False)
  config = dataclasses.replace(
    CONFIGS[name], rope_scaling=yarn, allow_neg_eigval=True
  )
  found = json.loads(json.dumps(to_json(config, jnp.float32)))
  assert from_json(found) == config
  # transformers 4 has the dictionary under another name, without the base.
  rope = {"rope_type": "yarn", "factor": 2, "attention_factor": None}
  old = {"rope_scaling": rope, "rope_theta": 7, "max_position_embeddings": 99}
  read = from_json(
    {key: x for key, x in found.items() if key != "rope_parameters"} | old
  )
  assert read.rope_theta == 7
  assert read.rope_scaling == Yarn(2.0, original_max_position_embeddings=99)


def test_model_types():
  dense = ModelConfig()
  assert dense.model_type == "qwen3_5_text"
  assert CONFIGS["moe"].model_type == "qwen3_5_moe_text"
  assert CONFIGS["mixed"].model_type == "qwen3_next"
  for bad in ("qwen3_5_moe_text", "qwen3_5", "gpt"):
    with oracles.refused(ValueError, f"model_type .* got '{bad}'"):
      ModelConfig(model_type=bad)


# --- Weights in e4m3 ----------------------------------------------------------

BLOCKS = 4, 8


def in_e4m3(tensors, blocks=BLOCKS):
  """Matrices of the layers as official FP8 checkpoints hold them."""
  found = {}
  for name, x in tensors.items():
    if x.ndim != 2 or "embed" in name or "lm_head" in name:
      found[name] = x
      continue
    rows, columns = (range(0, n, b) for n, b in zip(x.shape, blocks))
    scale = np.empty((len(rows), len(columns)), np.float32)
    codes = np.empty(x.shape, ml_dtypes.float8_e4m3fn)
    for (i, r), (j, c) in itertools.product(
      enumerate(rows), enumerate(columns)
    ):
      at = slice(r, r + blocks[0]), slice(c, c + blocks[1])
      scale[i, j] = np.abs(x[at]).max() / 448
      codes[at] = (x[at] / scale[i, j]).astype(codes.dtype)
    found |= {name: codes, f"{name}_scale_inv": scale}
  return found


@pytest.mark.parametrize("name", ["dense", "next"])
def test_official_fp8_checkpoints(tmp_path, name):
  """Blocks of e4m3 and their scales; edges do not fill a block."""
  path = saved(tmp_path, name)
  tensors = tensors_in(path)
  quantised = in_e4m3(tensors)
  assert sum(x.dtype == ml_dtypes.float8_e4m3fn for x in quantised.values()) > 9
  floats = dict(quantised)
  for key in tensors:
    scale = floats.pop(f"{key}_scale_inv", None)
    if scale is not None:
      rows, columns = np.indices(tensors[key].shape)
      scales = scale[rows // BLOCKS[0], columns // BLOCKS[1]]
      floats[key] = quantised[key].astype(np.float32) * scales
      # 3 bits of mantissa: off by up to a sixteenth, and near 0 by the step.
      limit = np.maximum(abs(tensors[key]) / 16, scales * 2.0**-10)
      assert (np.abs(floats[key] - tensors[key]) <= limit * 1.001).all()
  rewrite(path, floats)
  want = checkpoint.load(path)
  rewrite(path, quantised)
  edit_config(
    path,
    quantization_config={
      "quant_method": "fp8",
      "fmt": "e4m3",
      "activation_scheme": "dynamic",
      "weight_block_size": list(BLOCKS),
      "modules_to_not_convert": ["lm_head"],
    },
  )
  assert_same(checkpoint.load(path), want)


def test_fp8_without_what_it_means(tmp_path):
  path = saved(tmp_path, "dense")
  quantised = in_e4m3(tensors_in(path))
  name = "model.layers.0.mlp.up_proj.weight"
  rewrite(path, quantised)
  with oracles.refused(ValueError, "is in e4m3, which needs a matrix and a w"):
    checkpoint.load(path)
  known = {"quant_method": "fp8", "weight_block_size": list(BLOCKS)}
  edit_config(path, quantization_config=known)
  bad = quantised | {f"{name}_scale_inv": np.ones((1, 2), np.float32)}
  rewrite(path, bad)
  with oracles.refused(ValueError, r"_scale_inv .* must have shape \(5, 2\)"):
    checkpoint.load(path)
  del bad[f"{name}_scale_inv"]
  rewrite(path, bad)
  with oracles.refused(ValueError, "must have shape .*, got None"):
    checkpoint.load(path)
  edit_config(path, quantization_config={"quant_method": "gptq"})
  with oracles.refused(ValueError, "must be absent or fp8 in e4m3 with a weig"):
    checkpoint.load(path)


# --- Damaged directories -----------------------------------------------------


def test_tensors_that_do_not_fit_are_listed(tmp_path):
  path = saved(tmp_path, "next")
  tensors = tensors_in(path)
  start = "model.layers.1."
  gone = [key for key in tensors if key.startswith(f"{start}mlp.experts.1")]
  gone += [key for key in tensors if key.startswith(f"{start}linear_attn")]
  for key in gone:
    del tensors[key]
  tensors["model.layers.9.extra.weight"] = np.ones(3, np.float32)
  tensors["model.norm.weight"] = np.ones(15, np.float32)
  rewrite(path, tensors)
  counts = f"{len(gone)} missing .* and {len(gone) - 4} more"
  pattern = (
    rf"do not fit its config\.json: {counts}\); "
    r"1 surplus \(model\.layers\.9\.extra\.weight\); "
    r"1 misshapen \(model\.norm\.weight is \(15,\), not \(16,\)\)"
  )
  with oracles.refused(ValueError, pattern):
    checkpoint.load(path)
  with pytest.raises(ValueError, match=rf"{start}linear_attn\.A_log"):
    checkpoint.load(path)


def test_files_of_what_is_not_read_may_be_left_out(tmp_path):
  """Predictors of further tokens are published in files of their own."""
  path = saved(tmp_path, "dense", max_shard_bytes=2000)
  file = path / "model.safetensors.index.json"
  index = json.loads(file.read_text())
  index["weight_map"]["mtp.fc.weight"] = "mtp.safetensors"
  file.write_text(json.dumps(index))
  assert_same(checkpoint.load(path), model_of("dense"))
  index["weight_map"]["model.layers.0.extra"] = "mtp.safetensors"
  file.write_text(json.dumps(index))
  with oracles.refused(FileNotFoundError, "names mtp.safetensors, which is mi"):
    checkpoint.load(path)


def test_mistaken_tensors(tmp_path):
  path = saved(tmp_path, "biased")
  tensors = tensors_in(path)
  name = "model.layers.3.self_attn.q_proj.weight"
  rewrite(path, tensors | {name: tensors[name].T.copy()})
  with oracles.refused(ValueError, r"q_proj\.weight is \(16, 64\), not \(64"):
    checkpoint.load(path)
  rewrite(path, tensors | {name: tensors[name].astype(np.int8)})
  with oracles.refused(ValueError, f"{name} .* must be one of F32.*got I8"):
    checkpoint.load(path)
  twice = {name.replace("model.", "model.language_model.", 1): tensors[name]}
  rewrite(path, tensors | twice)
  with oracles.refused(ValueError, f"holds {name} more than once"):
    checkpoint.load(path)
  edit_config(path, tie_word_embeddings=False, attention_bias=False)
  rewrite(path, tensors)
  with oracles.refused(ValueError, r"8 surplus \(model\.layers\.3\.self_attn"):
    checkpoint.load(path)


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: data[:-1],
    lambda data: data[: len(data) // 2],
    lambda data: data[:20],
    lambda data: b"",
    lambda data: data + b"\0",
    lambda data: b"\xff" * 8 + data[8:],
    lambda data: data[:9] + b"}" + data[10:],
    lambda data: b"version https://git-lfs.github.com/spec/v1\n",
  ],
)
def test_truncated_and_corrupt_files(tmp_path, damage):
  path = saved(tmp_path, "dense")
  file = path / SINGLE
  file.write_bytes(damage(file.read_bytes()))
  sentence = r"model\.safetensors is truncated or not safetensors \("
  with oracles.refused(ValueError, sentence):
    checkpoint.load(path)


def test_missing_files_and_a_wrong_index(tmp_path):
  path = saved(tmp_path, "dense", max_shard_bytes=20_000)
  index = path / safetensors_io.INDEX
  original = json.loads(index.read_text())
  shard = sorted(path.glob("*.safetensors"))[1]
  data = shard.read_bytes()
  shard.write_bytes(data[:-4])
  with oracles.refused(ValueError, rf"{shard.name} is truncated"):
    checkpoint.load(path)
  shard.unlink()
  with oracles.refused(FileNotFoundError, f"names {shard.name}, which is miss"):
    checkpoint.load(path)
  shard.write_bytes(data)
  homes = original["weight_map"] | {"model.absent": shard.name}
  index.write_text(json.dumps({"weight_map": homes}))
  with oracles.refused(ValueError, rf"names model\.absent, which {shard.name}"):
    checkpoint.load(path)
  for text in ("{", "[]", "{}", '{"weight_map": 3}'):
    index.write_text(text)
    with oracles.refused(ValueError, "must be JSON with a weight_map"):
      checkpoint.load(path)
  index.write_text('{"weight_map": {"model.norm.weight": 3}}')
  with oracles.refused(ValueError, r"the file of model\.norm\.weight, got 3"):
    checkpoint.load(path)
  index.unlink()
  with oracles.refused(FileNotFoundError, r"path must hold model\.safetensor"):
    checkpoint.load(path)


# --- Nothing overwritten, nothing left behind --------------------------------

WRITERS = {"save": checkpoint.save, "save_orbax": checkpoint.save_orbax}


@pytest.mark.parametrize("writer", WRITERS)
def test_taken_places(tmp_path, writer):
  write, model = WRITERS[writer], model_of("dense")
  taken = tmp_path / "taken"
  taken.mkdir()
  (taken / "notes.txt").write_text("mine")
  file = tmp_path / "file"
  file.write_text("mine")
  for path in (taken, file):
    with oracles.refused(FileExistsError, "path must be new"):
      write(model, path)
  with oracles.refused(FileNotFoundError, "path must lie in a folder that ex"):
    write(model, tmp_path / "no" / "such")
  assert sorted(x.name for x in tmp_path.iterdir()) == ["file", "taken"]
  assert [x.name for x in taken.iterdir()] == ["notes.txt"]
  assert file.read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
  (tmp_path / "empty").mkdir()
  checkpoint.save(model_of("dense"), tmp_path / "empty")
  assert_same(checkpoint.load(tmp_path / "empty"), model_of("dense"))
  with oracles.refused(ValueError, "max_shard_bytes must be at least 1, got 0"):
    checkpoint.save(model_of("dense"), tmp_path / "x", max_shard_bytes=0)
  assert [x.name for x in tmp_path.iterdir()] == ["empty"]


@contextlib.contextmanager
def full_disk(size):
  """No file may grow past `size` bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_failing_save_leaves_nothing(tmp_path, writer):
  model = model_of("dense")
  with pytest.raises(Exception, match=r"[Ff]ile too large|OUT_OF_RANGE"):
    with full_disk(4096):
      WRITERS[writer](model, tmp_path / "x")
  assert not list(tmp_path.iterdir())


def test_a_save_that_stops_between_shards_leaves_nothing(tmp_path, monkeypatch):
  written = []

  def stop(tensors, file, metadata):
    save_file(tensors, file, metadata=metadata)
    written.append(file)
    if len(written) == 2:
      raise KeyboardInterrupt

  monkeypatch.setattr(safetensors_shards, "save_file", stop)
  with pytest.raises(KeyboardInterrupt):
    checkpoint.save(model_of("dense"), tmp_path / "x", max_shard_bytes=20_000)
  assert not list(tmp_path.iterdir())


def test_damaged_orbax_folders(tmp_path):
  sound = tmp_path / "sound"
  checkpoint.save_orbax(model_of("dense"), sound)
  with oracles.refused(FileNotFoundError, "path must be a folder of save_orb"):
    checkpoint.restore_orbax(tmp_path / "absent")
  (tmp_path / "other").mkdir()
  damaged = {"other": tmp_path / "other"}
  for part in ("_CHECKPOINT_METADATA", "manifest.ocdbt", "d"):
    damaged[part] = tmp_path / f"without{part}"
    shutil.copytree(sound, damaged[part])
    gone = damaged[part] / part
    gone.unlink() if gone.is_file() else shutil.rmtree(gone)
  for path in damaged.values():
    with oracles.refused(ValueError, "is damaged, or was not written by save"):
      checkpoint.restore_orbax(path)


@pytest.mark.parametrize("how", ["missing", "short"])
def test_damaged_orbax_data_is_one_sentence(tmp_path, capfd, how):
  """No array is read, so no read leaves its traceback on stderr."""
  path = tmp_path / "model"
  checkpoint.save_orbax(model_of("dense"), path)
  data = (path / "ocdbt.process_0" / "d").iterdir()
  largest = max(data, key=lambda file: file.stat().st_size)
  if how == "missing":
    largest.unlink()
  else:
    largest.write_bytes(largest.read_bytes()[:100])
  with oracles.refused(ValueError, "is damaged, or was not") as raised:
    checkpoint.restore_orbax(path)
  gc.collect()
  assert largest.name in str(raised.value.__cause__)
  assert "Traceback" not in capfd.readouterr().err


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
