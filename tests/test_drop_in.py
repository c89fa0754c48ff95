"""A directory that came in and goes out with other text weights."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from neumann_jax import Execution, checkpoint
from neumann_jax.checkpoint import hf_layout
from neumann_jax.checkpoint.params import flat_params, with_params
from neumann_jax.model.scan_layers import stack_layers
from neumann_jax.weight_quantization import preset, quantize_weights
from tests import oracles
from tests.checkpoints import CONFIGS, SINGLE, assert_same, model_of

FILES = {
  "generation_config.json": '{"eos_token_id": [7, 9], "top_k": 20}',
  "tokenizer.json": '{"any": "thing"}',
  "tokenizer_config.json": '{"eos_token": "<|im_end|>"}',
  "chat_template.jinja": "{{ messages }}",
  "preprocessor_config.json": "{}",
  "LICENSE": "of the model",
}
# Towers and the like, of dtypes that no parameter of ours has.
OTHERS = {
  "mtp.fc.weight": np.arange(4, dtype=np.float16),
  "model.visual.patch.weight": np.ones((2, 3), np.float32),
  "model.visual.patch.scale": np.ones(3, ml_dtypes.float8_e4m3fn),
}


def published(folder, name, *, shards=1, dtype=ml_dtypes.bfloat16):
  """A directory as a vision-language model is published."""
  path = folder / f"published-{name}"
  checkpoint.save(model_of(name), path)
  config = json.loads((path / "config.json").read_text())
  tied = config.pop("tie_word_embeddings")
  config |= {"eos_token_id": 7, "bos_token_id": None}
  nested = {"text_config": config, "vision_config": {"depth": 1}}
  nested |= {"model_type": "qwen3_5", "tie_word_embeddings": tied}
  nested |= {"pad_token_id": 5, "dtype": "bfloat16"}
  (path / "config.json").write_text(json.dumps(nested))
  tensors = {
    key.replace("model.", "model.language_model.", 1): x.astype(
      np.float32 if key.endswith(("A_log", "dt_bias")) else dtype
    )
    for key, x in load_file(path / SINGLE).items()
  }
  tensors |= OTHERS
  if tied:  # some files hold it all the same
    embedding = tensors["model.language_model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.copy()
  _write(path, tensors, shards)
  for file, text in FILES.items():
    (path / file).write_text(text)
  (path / "pytorch_model.bin").write_text("the old weights")
  return path, tensors


def _write(path, tensors, shards):
  (path / SINGLE).unlink()
  if shards == 1:
    save_file(tensors, path / SINGLE, metadata={"format": "pt", "of": "us"})
    return
  homes = {}
  for i in range(shards):
    names = sorted(tensors)[i::shards]
    file = f"part-{i}.safetensors"
    save_file({name: tensors[name] for name in names}, path / file)
    homes |= dict.fromkeys(names, file)
  index = {"metadata": {}, "weight_map": homes}
  (path / "model.safetensors.index.json").write_text(json.dumps(index))


def stored(data):
  """Bytes of the tensors of a file: numpy has no float8 to read them into."""
  start = 8 + int.from_bytes(data[:8], "little")
  header = json.loads(data[8:start])
  places = {
    name: entry["data_offsets"]
    for name, entry in header.items()
    if name != "__metadata__"
  }
  return {name: data[start + i : start + j] for name, (i, j) in places.items()}


def tuned(model):
  """The model with every parameter changed."""
  return with_params(
    model, {path: x + 0.5 for path, x in flat_params(model).items()}
  )


@pytest.mark.parametrize("name, shards", [("dense", 1), ("biased", 3)])
def test_only_the_text_weights_change(tmp_path, name, shards):
  path, tensors = published(tmp_path, name, shards=shards)
  before = {file.name: file.read_bytes() for file in path.iterdir()}
  narrow = Execution(param_dtype=jnp.bfloat16)
  model = tuned(checkpoint.load(path, narrow))
  checkpoint.save(model, tmp_path / "out", like=path)
  after = {
    file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()
  }
  assert set(before) - set(after) == {"pytorch_model.bin"}
  for file, data in after.items():
    whole = before[file]
    if not file.endswith(".safetensors"):
      assert data == whole
    header = 8 + int.from_bytes(whole[:8], "little")
    assert data[:header] == whole[:header] and len(data) == len(whole)
  found = {}
  for file in (tmp_path / "out").glob("*.safetensors"):
    found |= stored(file.read_bytes())
  assert set(found) == set(tensors)
  for key, x in tensors.items():
    same = key in OTHERS
    assert (found[key] == x.tobytes()) == same, key
  assert_same(checkpoint.load(tmp_path / "out", narrow), model)
  # What was there before is as it was.
  assert before == {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_was_not_changed_goes_out_to_the_bit(tmp_path):
  path, _ = published(tmp_path, "dense")
  model = stack_layers(checkpoint.load(path))  # float32, and scanned
  checkpoint.save(model, tmp_path / "out", like=path)
  assert (tmp_path / "out" / SINGLE).read_bytes() == (
    path / SINGLE
  ).read_bytes()


@pytest.mark.parametrize("name", ["moe", "next"])
def test_experts_lie_as_they_did(tmp_path, name):
  """Fused or apart, whatever `save` alone would write."""
  checkpoint.save(model_of(name), tmp_path / "own")
  tensors = load_file(tmp_path / "own" / SINGLE)
  other = {}
  for tensor in hf_layout.tensors(CONFIGS[name]):
    if not tensor.pieces:
      other[tensor.name] = tensors[tensor.name]
    elif tensor.name in tensors:
      for piece in tensor.pieces:
        part = tensors[tensor.name][piece.place]
        other[piece.name] = np.ascontiguousarray(part)
    else:
      whole = np.empty(tensor.shape, np.float32)
      for piece in tensor.pieces:
        whole[piece.place] = tensors[piece.name]
      other[tensor.name] = whole
  save_file(other, tmp_path / "own" / SINGLE, metadata={"format": "pt"})
  model = tuned(model_of(name))
  checkpoint.save(model, tmp_path / "out", like=tmp_path / "own")
  assert set(load_file(tmp_path / "out" / SINGLE)) == set(other)
  assert_same(checkpoint.load(tmp_path / "out"), model)


def test_refusals(tmp_path):
  path, _ = published(tmp_path, "dense")
  save = lambda model: checkpoint.save(model, tmp_path / "out", like=path)  # noqa: E731
  with oracles.refused(
    ValueError, "config.json of .* differs in .*attention_b"
  ):
    save(model_of("biased"))
  with oracles.refused(ValueError, "trained: quantised ones have no place"):
    save(quantize_weights(model_of("dense"), preset("W4A16")))
  with oracles.refused(ValueError, "trained: quantised ones have no place"):
    checkpoint.save(
      quantize_weights(model_of("dense"), preset("W8")), tmp_path / "plain"
    )
  key = tmp_path.parent / "key"
  key.write_text("of somebody")
  (path / "notes.txt").symlink_to(key)
  with oracles.refused(ValueError, "notes.txt.* must lie in that folder, but"):
    save(model_of("dense"))
  (path / "notes.txt").unlink()
  # What no index names is copied, and so written over, as well.
  extra, norm = path / "extra.safetensors", "model.norm.weight"
  for tensor, words in (
    (np.ones(3, np.float32), r"extra.* must have shape .* got \[3\]"),
    (np.ones(3, np.int8), "must be one of F64.* I8: save without like"),
  ):
    save_file({norm: tensor}, extra)
    with oracles.refused(ValueError, words):
      save(model_of("dense"))
  extra.write_bytes(b"1234")
  with oracles.refused(ValueError, "extra.* is truncated or not safetensors"):
    save(model_of("dense"))
  extra.unlink()
  (path / SINGLE).write_bytes((path / SINGLE).read_bytes()[:-1])
  with oracles.refused(ValueError, "truncated or not safetensors"):
    save(model_of("dense"))
  assert sorted(x.name for x in tmp_path.iterdir()) == [path.name]
