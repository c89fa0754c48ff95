"""Every flipped bit of an Orbax folder is found, and its file is named."""

import shutil

import jax
import numpy as np
import pytest

from neumann_jax import Execution, LanguageModel, ModelConfig, checkpoint
from neumann_jax.checkpoint import orbax_tree
from neumann_jax.checkpoint.params import (
  abstract_model,
  flat_params,
  with_params,
)
from tests.oracles import refused

CONFIG = ModelConfig(
  hidden_size=16,
  num_hidden_layers=2,
  layer_types=("linear_attention", "full_attention"),
  intermediate_size=32,
  head_dim=8,
  num_attention_heads=2,
  num_key_value_heads=1,
  linear_num_key_heads=1,
  linear_num_value_heads=2,
  linear_key_head_dim=8,
  linear_value_head_dim=8,
  vocab_size=64,
)


def _model() -> LanguageModel:
  model = abstract_model(CONFIG, Execution())
  rng = np.random.default_rng(0)
  made = {
    path: jax.numpy.asarray(rng.standard_normal(x.shape), x.dtype)
    for path, x in flat_params(model).items()
  }
  return with_params(model, made)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp("orbax") / "model"
  checkpoint.save_orbax(_model(), path)
  return path


def _flip(path, rng):
  """Flips one bit of the folder, drawn evenly; returns how to undo it."""
  files = sorted(file for file in path.rglob("*") if file.is_file())
  sizes = np.array([file.stat().st_size for file in files])
  file = files[rng.choice(len(files), p=sizes / sizes.sum())]
  before = file.read_bytes()
  data = bytearray(before)
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  file.write_bytes(data)
  return file, lambda: file.write_bytes(before)


@pytest.mark.parametrize(
  "count", [20, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_flipped_bits_are_found(saved, count):
  rng = np.random.default_rng(count)
  for _ in range(count):
    file, undo = _flip(saved, rng)
    with refused(ValueError, "is damaged, or was not written by") as raised:
      checkpoint.restore_orbax(saved)
    assert file.name in str(raised.value) or file.name == "sha256.json"
    assert len(str(raised.value)) < 600
    undo()
  found = flat_params(checkpoint.restore_orbax(saved))
  for path, x in flat_params(_model()).items():
    np.testing.assert_array_equal(found[path], x)


def test_a_full_disk_is_said_before_orbax_meets_it(tmp_path, monkeypatch):
  """And what Orbax says of the system is the system's error again."""
  usage, path = shutil.disk_usage(tmp_path), tmp_path / "model"
  with monkeypatch.context() as patched:
    full = usage._replace(free=1000)
    patched.setattr(orbax_tree.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(OSError, match="No space left") as raised:
      checkpoint.save_orbax(_model(), path)
  assert (raised.value.errno, raised.value.filename) == (28, str(path))

  def fails(*_, **__):
    (tmp_path / ".model.unfinished").mkdir()
    raise ValueError("RESOURCE_EXHAUSTED: a file: No space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(orbax_tree.ocp.StandardCheckpointer, "save", fails)
    with pytest.raises(OSError, match="No space left") as raised:
      checkpoint.save_orbax(_model(), path)
  assert (raised.value.errno, raised.value.filename) == (28, str(path))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_are_finite(tmp_path, value):
  """Hashes hold what was written, be it no number."""
  model = _model()
  bad = flat_params(model)
  path = ("layers", 1, "mlp", "up_proj", "kernel")
  bad[path] = bad[path].at[3, 2].set(value)
  checkpoint.save_orbax(with_params(model, bad), tmp_path / "bad")
  with refused(
    ValueError, r"layers\.1\.mlp\.up_proj\.kernel in .*bad must be finite"
  ):
    checkpoint.restore_orbax(tmp_path / "bad")


def test_a_folder_of_an_older_version_is_refused_with_a_way_out(saved):
  sums = saved / "sha256.json"
  hidden = sums.rename(saved.with_name("sums"))
  with refused(ValueError, "older versions did not write: .* save it again"):
    checkpoint.restore_orbax(saved)
  hidden.rename(sums)


def test_a_list_of_hashes_that_is_none(saved):
  sums = saved / "sha256.json"
  before = sums.read_bytes()
  for words in ("[1]", "3", "{", '{"../../etc/passwd": "0"}'):
    sums.write_text(words)
    with refused(ValueError, "is damaged, or was not written by"):
      checkpoint.restore_orbax(saved)
  sums.write_bytes(before)
