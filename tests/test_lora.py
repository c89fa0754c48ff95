"""Adapters of linear maps, and their files."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from neumann_jax import Execution, RuleOptions, checkpoint, sharding, tuning
from neumann_jax.checkpoint import params as param_place
from neumann_jax.weight_quantization import preset, quantize_weights
from tests import models, oracles

RULE = RuleOptions(chunk_size=16)
SPEC = tuning.LoraSpec(rank=3, alpha=6.0)


def filled(shapes, seed=0):
  """Arrays for shapes: a model without the time that initialisers take."""
  rng = np.random.default_rng(seed)
  flat = param_place.flat_params(shapes)
  return param_place.with_params(
    shapes,
    {
      path: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
      for path, x in flat.items()
    },
  )


# A layer of attention compiles in a fraction of the time of the other kind.
ATTENTION = dataclasses.replace(
  models.CONFIGS["dense"],
  num_hidden_layers=1,
  layer_types=("full_attention",),
)


def base(kind="dense", **options):
  config = ATTENTION if kind == "attention" else models.CONFIGS[kind]
  execution = Execution(rule=RULE, **options)
  return param_place.abstract_model(config, execution)


def adapted_shapes(kind="dense", spec=SPEC, **options):
  make = lambda m: tuning.add_adapters(m, spec, rngs=nnx.Rngs(0))  # noqa: E731
  return nnx.eval_shape(make, base(kind, **options))


def test_a_map_and_its_adapter_against_float64():
  linear = nnx.Linear(5, 7, rngs=nnx.Rngs(0))
  lora = tuning.lora.LoraLinear(linear, SPEC, rngs=nnx.Rngs(1))
  x = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
  np.testing.assert_array_equal(lora(x), linear(x))  # B begins as zeros
  assert np.abs(lora.lora_a[...]).max() <= 5**-0.5
  lora.lora_b[...] = jnp.ones((3, 7)) * jnp.arange(7.0)
  wide = [
    np.asarray(p[...], np.float64)
    for p in (lora.kernel, lora.bias, lora.lora_a, lora.lora_b)
  ]
  kernel, bias, a, b = wide
  want = x @ kernel + bias + 2.0 * (x @ a) @ b
  np.testing.assert_allclose(lora(x), want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    lora.merged(), kernel + 2.0 * a @ b, rtol=1e-6, atol=1e-6
  )


@pytest.mark.parametrize(
  "kind",
  [
    "attention",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("dense", "sparse")),
  ],
)
def test_merged_it_is_the_same_model(kind):
  model = filled(adapted_shapes(kind))
  tokens = np.arange(24, dtype=np.int32)[None]
  run = oracles.quick_jit(lambda m, t: m(t)[0])
  want = run(model, tokens)
  merged = tuning.merge_adapters(model)
  assert not tuning.adapters(merged)
  oracles.assert_close(run(merged, tokens), want, oracles.PARITY)


@pytest.mark.parametrize("scan", [False, True])
def test_read_again_it_is_the_same_model(tmp_path, scan):
  kind = "deep" if scan else "dense"
  model = filled(adapted_shapes(kind, scan_layers=scan))
  tuning.save_adapters(model, tmp_path / "adapter", base="somewhere")
  stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
  depth = model.config.num_hidden_layers
  # The last layer is of full attention, in both.
  name = f"base_model.model.model.layers.{depth - 1}.self_attn.q_proj"
  assert stored[f"{name}.lora_A.weight"].shape == (3, 64)
  assert stored[f"{name}.lora_B.weight"].shape == (128, 3)
  plain = _without_adapters(model, base(kind, scan_layers=scan))
  again = tuning.load_adapters(plain, tmp_path / "adapter")
  for path, x in param_place.flat_params(model).items():
    np.testing.assert_array_equal(param_place.flat_params(again)[path], x)


def test_named_for_the_class_of_the_checkpoint(tmp_path):
  """PEFT passes over names of another class with a warning."""
  inside = dataclasses.replace(ATTENTION, vision_language=True)
  plain = param_place.abstract_model(inside, Execution())
  spec = tuning.LoraSpec(rank=2, targets=("o_proj",))
  model = filled(
    nnx.eval_shape(
      lambda m: tuning.add_adapters(m, spec, rngs=nnx.Rngs(0)), plain
    )
  )
  tuning.save_adapters(model, tmp_path / "whole")
  tuning.save_adapters(model, tmp_path / "text", text_only=True)
  layers = {"whole": "model.language_model.layers", "text": "model.layers"}
  for name, begin in layers.items():
    names = load_file(tmp_path / name / "adapter_model.safetensors")
    assert names
    assert all(x.startswith(f"base_model.model.{begin}.") for x in names)
    again = tuning.load_adapters(
      _without_adapters(model, plain), tmp_path / name
    )
    for path, x in param_place.flat_params(model).items():
      np.testing.assert_array_equal(param_place.flat_params(again)[path], x)


@pytest.mark.parametrize("scan", [False, True])
def test_a_map_that_a_file_leaves_out_stays_as_it_is(tmp_path, scan):
  """PEFT writes so with layers_to_transform, or a pattern of one layer."""
  kind = "deep" if scan else "dense"
  model = filled(adapted_shapes(kind, scan_layers=scan))
  tuning.save_adapters(model, tmp_path / "all")
  tensors = load_file(tmp_path / "all/adapter_model.safetensors")
  kept = {name: x for name, x in tensors.items() if ".layers.1." in name}
  assert 0 < len(kept) < len(tensors)
  path = _changed(tmp_path / "all", tmp_path, tensors=kept)
  again = tuning.load_adapters(base(kind, scan_layers=scan), path)
  tuning.save_adapters(again, tmp_path / "again")
  found = load_file(tmp_path / "again/adapter_model.safetensors")
  targets = {name.split(".")[-3] for name in kept}
  assert found.keys() == {x for x in tensors if x.split(".")[-3] in targets}
  for name, x in found.items():
    np.testing.assert_array_equal(x, kept.get(name, np.zeros_like(x)))


def test_a_shared_expert_is_named_by_its_weights(tmp_path):
  """PEFT takes the names of its linear maps for those of routed experts."""
  plain = base("sparse")  # of Qwen3-Next, its layer 1 without experts
  targets = ("up_proj", "down_proj", "o_proj")
  spec = tuning.LoraSpec(rank=3, targets=targets)
  model = filled(adapted_shapes("sparse", spec))
  tuning.save_adapters(model, tmp_path / "adapter")
  config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
  assert config["target_modules"] == ["o_proj"]
  assert config["target_parameters"] == [
    f"{owner}.{name}.weight"
    for owner in ("mlp", "shared_expert")
    for name in ("down_proj", "up_proj")
  ]
  again = tuning.load_adapters(plain, tmp_path / "adapter")
  assert len(tuning.adapters(again)) == len(tuning.adapters(model)) == 5
  # A dense model has none, and PEFT below 0.17 does not know the key.
  tuning.save_adapters(filled(adapted_shapes("attention")), tmp_path / "dense")
  config = json.loads((tmp_path / "dense/adapter_config.json").read_text())
  assert "target_parameters" not in config
  assert {"down_proj", "q_proj"} <= set(config["target_modules"])


def _without_adapters(model, plain):
  params = param_place.flat_params(model)
  return param_place.with_params(
    plain, {path: params[path] for path in param_place.flat_params(plain)}
  )


def test_what_is_adapted():
  names = {path[-2] for path in _adapters(adapted_shapes())}
  assert names == {
    *("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
  }
  # Qwen3-Next fuses the projections of Gated DeltaNet; routers are no linear
  # maps of transformers.
  sparse = _adapters(adapted_shapes("sparse"))
  names = {path[-2] for path in sparse}
  assert not names & {"gate", "in_proj_qkv", "in_proj_b", "experts"}
  assert "shared_expert_gate" in names and "out_proj" in names
  few = tuning.LoraSpec(rank=2, targets=("q_proj", "up_proj"))
  names = [path[-2] for path in _adapters(adapted_shapes(spec=few))]
  assert sorted(names) == ["q_proj", "up_proj", "up_proj"]


def _adapters(model):
  flat = param_place.flat_params(model)
  return [path for path in flat if path[-1] == "lora_a"]


def test_only_the_adapters_have_a_gradient_that_is_used():
  """Of bfloat16 weights they stay float32, and so does their gradient."""
  narrow = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
  model = filled(adapted_shapes("attention", **narrow))
  params = param_place.flat_params(model)
  tokens = np.arange(16, dtype=np.int32)[None]

  def loss(model):
    return jnp.mean(model.hidden_states(tokens)[0].astype(jnp.float32) ** 3)

  # The variables that are tuned by their type, as optax's wrapper in flax does.
  tuned = nnx.DiffState(0, nnx.LoRAParam)
  # jax's attention mixes dtypes in its backward pass.
  with jax.numpy_dtype_promotion("standard"):
    gradient = oracles.quick_jit(nnx.grad(loss, argnums=tuned))(model)
  found = dict(nnx.to_flat_state(gradient))
  assert found.keys() == {p for p in params if p[-1].startswith("lora_")}
  assert found
  for path, variable in found.items():
    x = variable[...]
    assert x.dtype == jnp.float32 and (x != 0).any(), path


def test_rank_stabilised_scale():
  assert tuning.LoraSpec(rank=16, alpha=8.0, use_rslora=True).scale == 2.0


def test_adapters_have_no_place_in_other_files(tmp_path):
  """Written as a checkpoint, the model would lose them without a word."""
  model = filled(adapted_shapes())
  with oracles.refused(ValueError, "merge_adapters"):
    checkpoint.save(model, tmp_path / "model")
  with oracles.refused(ValueError, "merge_adapters"):
    checkpoint.save_orbax(model, tmp_path / "orbax")
  with oracles.refused(ValueError, "adapters"):
    quantize_weights(model, preset("W8A8"))
  assert not list(tmp_path.iterdir())


def test_on_a_mesh_adapters_are_whole():
  model = adapted_shapes()
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  specs = param_place.flat_params(
    nnx.merge(nnx.graphdef(model), sharding.param_specs(model, mesh))
  )
  path = ("layers", 1, "self_attn", "q_proj")
  assert tuple(specs[(*path, "kernel")]) == ("fsdp", "tensor")
  assert not any(specs[(*path, "lora_a")])


@pytest.mark.parametrize(
  "spec, words",
  [
    ({"rank": 0}, "rank must be at least 1, got 0"),
    ({"rank": 2.0}, "rank must be an integer, got 2.0"),
    ({"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
    ({"alpha": "16"}, "alpha must be a number, got '16'"),
    ({"targets": "q_proj"}, "targets must be a tuple of names, as .'q_proj',."),
    ({"targets": ()}, "targets must name linear maps"),
    ({"targets": ("queries",)}, "targets must be among the linear maps"),
  ],
)
def test_refused_specs(spec, words):
  with oracles.refused(ValueError, words):
    tuning.add_adapters(base(), tuning.LoraSpec(**spec), rngs=nnx.Rngs(0))


def test_all_linear_is_a_word_as_in_peft():
  assert tuning.LoraSpec(targets="all-linear") == tuning.LoraSpec()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj",)])
def test_quantised_models_are_refused(kind, targets):
  quantized = nnx.eval_shape(
    lambda m: quantize_weights(m, preset("W8A8")), base(kind)
  )
  with oracles.refused(ValueError, "quantised ones are not adapted"):
    tuning.add_adapters(
      quantized, tuning.LoraSpec(targets=targets), rngs=nnx.Rngs(0)
    )


def test_refused_models():
  model = adapted_shapes()
  with oracles.refused(ValueError, "model has adapters already"):
    tuning.add_adapters(model, SPEC, rngs=nnx.Rngs(0))
  with oracles.refused(ValueError, "model has no adapters"):
    tuning.merge_adapters(base())
  with oracles.refused(ValueError, "model has no adapters"):
    tuning.save_adapters(base(), "nowhere")


def test_adapters_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
  model = filled(adapted_shapes("attention"))
  file = tmp_path / "file"
  file.write_text("mine")
  with oracles.refused(FileExistsError, "path must be new or an empty folder"):
    tuning.save_adapters(model, file)
  assert file.read_text() == "mine"
  with oracles.refused(FileNotFoundError, "path must lie in a folder that"):
    tuning.save_adapters(model, tmp_path / "none" / "adapter")

  def full(*args, **options):
    raise OSError("no space left")

  with monkeypatch.context() as patched, pytest.raises(OSError, match="space"):
    patched.setattr(pathlib.Path, "write_bytes", full)
    tuning.save_adapters(model, tmp_path / "adapter")
  tuning.adapters(model)[0].lora_b[...] = jnp.full_like(
    tuning.adapters(model)[0].lora_b[...], jnp.nan
  )
  with oracles.refused(ValueError, "lora_B.weight in model must be finite"):
    tuning.save_adapters(model, tmp_path / "adapter")
  assert list(tmp_path.iterdir()) == [file]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("peft") / "adapter"
  tuning.save_adapters(filled(adapted_shapes()), path)
  return path


@pytest.mark.parametrize(
  "change, words",
  [
    ({"peft_type": "IA3"}, "must have peft_type LORA, got"),
    ({"use_dora": True}, "use_dora True, which is not computed here"),
    ({"bias": "all"}, "bias 'all', which is not computed here"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"r": "many"}, "r must be an integer"),
    ({"r": 4}, "must have shape"),
    # 2^40 columns are not to be allocated before that is seen.
    ({"r": 2**40}, "must have shape"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter"),
    ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
    ({"init_lora_weights": "corda"}, "init_lora_weights 'corda'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ({"kasa_config": {"beta": 1e-4}}, "kasa_config"),
    ({"use_of_next_year": True}, "use_of_next_year True, which is not"),
    ({"lora_alpha": None}, "lora_alpha must be a number"),
  ],
)
def test_refused_configs(written, tmp_path, change, words):
  path = _changed(written, tmp_path, config=change)
  with oracles.refused(ValueError, words):
    tuning.load_adapters(base(), path)


@pytest.mark.parametrize(
  "name",
  [
    "experts.base_layer",  # of PEFT 0.21, both maps of one parameter
    "experts.3.up_proj",  # of transformers 4, each expert a module
  ],
)
def test_adapters_of_experts_are_refused(written, tmp_path, name):
  """By that word, before the settings that PEFT derives from them."""
  tensors = load_file(written / "adapter_model.safetensors")
  layer = "base_model.model.model.layers.0.mlp"
  tensors[f"{layer}.{name}.lora_A.weight"] = np.ones((6, 64), np.float32)
  settings = {
    "rank_pattern": {r".*\.gate_up_proj": 6},
    "target_parameters": ["gate_up_proj", "down_proj"],
  }
  path = _changed(written, tmp_path, config=settings, tensors=tensors)
  with oracles.refused(ValueError, "adapts routed experts .*merge it in PEFT"):
    tuning.load_adapters(base(), path)


def test_what_peft_writes_beside_is_read(written, tmp_path):
  """Of version 0.21, for defaults and what is of training alone."""
  defaults = {
    **dict.fromkeys(
      ("alora_invocation_tokens", "arrow_config", "auto_mapping", "eva_config")
    ),
    **dict.fromkeys(("layer_replication", "modules_to_save", "use_bdlora")),
    **dict.fromkeys(("lora_bias", "use_dora", "use_qalora"), False),
    **{"alpha_pattern": {}, "rank_pattern": {}, "loftq_config": {}},
    **{"init_lora_weights": True, "lora_dropout": 0.05, "peft_version": "0.21"},
    **{"megatron_core": "megatron.core", "qalora_group_size": 16},
    **{"exclude_modules": ["lm_head"], "layers_to_transform": [0, 1]},
  }
  path = _changed(written, tmp_path, config=defaults)
  adapted = tuning.load_adapters(base(), path)
  assert len(tuning.adapters(adapted)) == len(_adapters(adapted_shapes()))


@pytest.mark.parametrize(
  "edit, words",
  [
    (lambda t: t.pop(min(t)), "adapters in .* lack base_model"),
    (lambda t: t.update({"lm_head.lora_A.weight": np.ones(3)}), "must be adap"),
    (
      lambda t: t.update({min(t).replace("layers.0", "layers.7"): t[min(t)]}),
      "adapters in .* have base_model.model.model.layers.7",
    ),
    (lambda t: t.update({min(t): np.full_like(t[min(t)], np.nan)}), "finite"),
  ],
)
def test_refused_tensors(written, tmp_path, edit, words):
  tensors = load_file(written / "adapter_model.safetensors")
  edit(tensors)
  path = _changed(written, tmp_path, tensors=tensors)
  with oracles.refused(ValueError, words):
    tuning.load_adapters(base(), path)


def _changed(written, tmp_path, *, config=None, tensors=None):
  path = tmp_path / "changed"
  path.mkdir()
  found = json.loads((written / "adapter_config.json").read_text())
  (path / "adapter_config.json").write_text(json.dumps(found | (config or {})))
  if tensors is None:
    tensors = load_file(written / "adapter_model.safetensors")
  save_file(tensors, path / "adapter_model.safetensors")
  return path


def test_truncated_and_missing_files(written, tmp_path):
  path = _changed(written, tmp_path)
  data = (path / "adapter_model.safetensors").read_bytes()
  (path / "adapter_model.safetensors").write_bytes(data[:-8])
  with oracles.refused(ValueError, "truncated or not safetensors"):
    tuning.load_adapters(base(), path)
  (path / "adapter_model.safetensors").unlink()
  with pytest.raises(FileNotFoundError):
    tuning.load_adapters(base(), path)
