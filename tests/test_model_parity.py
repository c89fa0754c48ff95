"""Our model against transformers: committed results, and fresh ones (slow)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from neumann_jax import Execution, RuleOptions, checkpoint
from neumann_jax.layers.positions import positions
from neumann_jax.model.decoder import Tokens
from tests import oracles

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FAMILIES = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
BLOCKS = (0, 3)
DELTA_NET, ATTENTION = ("conv", "recurrent"), ("keys", "values")
# Two chunks, the last one partly filled.
RULE = RuleOptions(chunk_size=16)
EXECUTION = Execution(rule=RULE)


@functools.lru_cache
def fixture(family):
  with np.load(FIXTURES / f"qwen_{family}.npz") as file:
    return dict(file)


def write_directory(folder, config, tensors):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  return folder


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
  """A model from a committed checkpoint, and what transformers computed."""
  want = fixture(request.param)
  tensors = {
    name.removeprefix("tensor/"): array
    for name, array in want.items()
    if name.startswith("tensor/")
  }
  config = json.loads(str(want["config"]))
  folder = tmp_path_factory.mktemp(request.param) / "model"
  folder = write_directory(folder, config, tensors)
  return checkpoint.load(folder, EXECUTION), want


def prefill_and_decode(model, tokens, count):
  """Logits [B, T, V] with `count` tokens at once, and the caches."""
  cache = model.init_cache(tokens.shape[0], tokens.shape[1])

  def step(cache, token):
    logits, cache = model(token[:, None], cache=cache)
    return cache, logits[:, 0]

  @oracles.quick_jit
  def run(cache, tokens):
    first, cache = model(tokens[:, :count], cache=cache)
    last, rest = jax.lax.scan(step, cache, tokens[:, count:].T)
    rest = jnp.swapaxes(rest, 0, 1)
    return jnp.concatenate([first, rest], axis=1), cache, last

  return run(cache, jnp.asarray(tokens))


def check_cache(cache, want, when):
  for i in BLOCKS:
    layer = cache.layers[i]
    if f"{when}{i}_conv" in want:
      pairs = zip(layer, DELTA_NET, strict=True)
    else:
      count = want[f"{when}{i}_keys"].shape[2]
      # [B, S, H, D] -> [B, H, S, D], without the room left.
      pairs = [
        (jnp.swapaxes(part, 1, 2)[:, :, :count], name)
        for part, name in zip(layer, ATTENTION, strict=True)
      ]
    for part, name in pairs:
      oracles.assert_close(part, want[f"{when}{i}_{name}"], oracles.PARITY)


def check_run(model, want):
  count = want["block0_input"].shape[1]
  logits, cache, last = prefill_and_decode(model, want["tokens"], count)
  oracles.assert_close(logits, want["logits"], oracles.PARITY)
  check_cache(cache, want, "prefill")
  check_cache(last, want, "decode")


def check_padded(model, want):
  call = oracles.quick_jit(lambda tokens, mask: model(tokens, mask=mask)[0])
  logits = call(want["padded_tokens"], want["padded_mask"])
  real = want["padded_mask"] == 1
  found = np.asarray(logits)[real]
  oracles.assert_close(found, want["padded_logits"][real], oracles.PARITY)


def few(*families):
  """These alone in the fast tests: all families share their layers."""
  return pytest.mark.parametrize(
    "loaded",
    [
      pytest.param(x, marks=[] if x in families else pytest.mark.slow)
      for x in FAMILIES
    ],
    indirect=True,
  )


@few("qwen3_5_text", "qwen3_5_moe_text")
def test_prefill_decode_and_caches(loaded):
  check_run(*loaded)


@few("qwen3_5_text")
def test_padded_batch(loaded):
  check_padded(*loaded)


@pytest.mark.parametrize("index", BLOCKS)
def test_block_output(loaded, index):
  model, want = loaded
  x = want[f"block{index}_input"]
  places = Tokens(positions(*x.shape[:2]), None, None)
  mixer = model.layers[index].mixer
  mix = oracles.quick_jit(lambda x: mixer(x, **places._asdict()))
  found, _ = mix(x)
  oracles.assert_close(found, want[f"block{index}_output"], oracles.PARITY)


# --- With transformers -------------------------------------------------------

# Value heads of two key heads, widths of a key and of a value, heads of full
# attention and their keys.
LAYOUTS = {
  "1:1": (2, 8, 8, 4, 4),
  "1:2": (4, 8, 16, 4, 2),
  "1:3": (6, 16, 8, 6, 2),
  "1:4": (8, 8, 8, 8, 1),
}


def maker():
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from tests import make_qwen_fixtures

  return make_qwen_fixtures


def layout_options(name):
  values, key_dim, value_dim, heads, shared = LAYOUTS[name]
  return {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": values,
    "linear_key_head_dim": key_dim,
    "linear_value_head_dim": value_dim,
    "num_attention_heads": heads,
    "num_key_value_heads": shared,
  }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_committed_results_are_those_of_transformers(family):
  make = maker()
  model, want = make.random_model(family), fixture(family)
  config, tensors = make.directory(model)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, want[f"tensor/{name}"])
  assert config["model_type"] == json.loads(str(want["config"]))["model_type"]
  for name, value in make.record(model).items():
    oracles.assert_close(value, want[name], oracles.PARITY)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_head_layouts(tmp_path, family, layout):
  make = maker()
  theirs = make.random_model(family, seed=1, **layout_options(layout))
  folder = tmp_path / "theirs"
  theirs.save_pretrained(folder)
  want = make.record(theirs, seed=1)
  model = checkpoint.load(folder, EXECUTION)
  check_run(model, want)
  check_padded(model, want)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("factor", [4.0, 1.5])
def test_longer_sequences_by_yarn(tmp_path, family, factor):
  make = maker()
  rope = {
    "rope_type": "yarn",
    "factor": factor,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
  }
  theirs = make.random_model(family, seed=3, rope_parameters=rope)
  theirs.save_pretrained(tmp_path / "theirs")
  model = checkpoint.load(tmp_path / "theirs", EXECUTION)
  assert model.config.rope_scaling is not None
  check_run(model, make.record(theirs, seed=3))


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_models_load_in_transformers(tmp_path, family, scan_layers):
  make = maker()
  import transformers

  theirs = make.random_model(
    family, seed=2, num_hidden_layers=8, mlp_only_layers=[]
  )
  theirs.save_pretrained(tmp_path / "theirs")
  execution = Execution(rule=RULE, scan_layers=scan_layers)
  model = checkpoint.load(tmp_path / "theirs", execution)
  checkpoint.save(model, tmp_path / "ours", max_shard_bytes=100_000)
  again, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert type(again) is type(theirs)
  assert not any(info.values()), info
  weights = again.state_dict()
  for name, weight in theirs.state_dict().items():
    np.testing.assert_array_equal(weights[name], weight)
  want, found = make.record(theirs), make.record(again.eval())
  # Their experts run by another implementation after `from_pretrained`.
  oracles.assert_close(found["logits"], want["logits"], oracles.PARITY)
  logits, _, _ = prefill_and_decode(model, want["tokens"], make.PREFILL)
  oracles.assert_close(logits, want["logits"], oracles.PARITY)
