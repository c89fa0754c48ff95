"""Damaged directories are refused in a sentence, and none is left behind."""

import contextlib
import gc
import json
import resource
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from neumann_jax import checkpoint
from neumann_jax.checkpoint import safetensors_io, safetensors_shards
from tests import oracles
from tests.checkpoints import (
  SINGLE,
  assert_same,
  edit_config,
  model_of,
  rewrite,
  saved,
  tensors_in,
)


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
