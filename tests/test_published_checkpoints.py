"""Directories as they are published: layouts of heads and experts, and FP8."""

import dataclasses
import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from neumann_jax import Execution, ModelConfig, checkpoint
from neumann_jax.checkpoint import hf_layout
from neumann_jax.checkpoint.hf_config import from_json, to_whole_json
from neumann_jax.checkpoint.params import (
  abstract_model,
  flat_params,
  with_params,
)
from tests import oracles
from tests.checkpoints import (
  CONFIGS,
  EXPERTS,
  assert_same,
  edit_config,
  model_of,
  rewrite,
  saved,
  tensors_in,
)


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
