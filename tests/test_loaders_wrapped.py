"""Weights as training tools and the hub leave them: wrapped, split, beside."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from posterior_jax import priors
from posterior_jax.priors.checkpoints import torch_file
from tests.oracles import refused
from tests.test_loaders import BINARY, FIXTURES, SAFE, SMALL_HEADS, load


def _same(found, expected):
  assert found.config == expected.config
  for name, value in expected.params.items():
    np.testing.assert_array_equal(found.params[name], value)


def _dense(file):
  tensors = torch_file.read(file)
  return {name: np.ascontiguousarray(t) for name, t in tensors.items()}


@pytest.mark.parametrize(
  "wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "state_dict.model."]
)
def test_names_lose_what_wrappers_added(tmp_path, wrapper):
  """pytorch/pytorch#3805: saved under DataParallel, no name fits."""
  tensors = _dense(FIXTURES / "adm.pt")
  path = tmp_path / "wrapped.safetensors"
  save_file({wrapper + name: t for name, t in tensors.items()}, path)
  _same(priors.load_adm(path, config=SMALL_HEADS), load("adm"))
  # One name without it: not a wrapper, and refused as unknown.
  first, *_ = tensors
  mixed = {wrapper + n if n != first else n: t for n, t in tensors.items()}
  save_file(mixed, path)
  with refused(ValueError, "wrapped.safetensors must hold"):
    priors.load_adm(path, config=SMALL_HEADS)


@pytest.fixture
def pipeline(tmp_path):
  """A diffusers pipeline with its network's weights as tensors."""
  folder = tmp_path / "pipeline"
  shutil.copytree(FIXTURES / "diffusers_old", folder / "unet")
  (folder / "scheduler").mkdir()
  (folder / "unet" / "scheduler_config.json").rename(
    folder / "scheduler" / "scheduler_config.json"
  )
  (folder / "unet" / BINARY).unlink()
  return folder, _dense(FIXTURES / "diffusers_old" / BINARY)


def test_weights_may_be_in_several_files(pipeline):
  folder, tensors = pipeline
  names = list(tensors)
  where = {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
    save_file({n: tensors[n] for n in part}, folder / "unet" / file)
    where |= dict.fromkeys(part, file)
  index = folder / "unet" / f"{SAFE}.index.json"
  index.write_text(json.dumps({"weight_map": where}))
  _same(priors.load_diffusers(folder), load("diffusers_old"))
  where[names[0]] = "../secret.safetensors"
  index.write_text(json.dumps({"weight_map": where}))
  with refused(ValueError, "must name files of its own folder, got '../secret"):
    priors.load_diffusers(folder)


def test_half_precision_is_found_by_its_name(pipeline):
  folder, tensors = pipeline
  half = {n: t.astype(np.float16) for n, t in tensors.items()}
  save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
  found, expected = priors.load_diffusers(folder), load("diffusers_old")
  for name, value in expected.params.items():
    np.testing.assert_allclose(found.params[name], value, rtol=1e-3, atol=1e-4)


def test_the_average_is_taken_before_the_network(pipeline):
  folder, tensors = pipeline
  save_file({n: 0 * t for n, t in tensors.items()}, folder / "unet" / SAFE)
  shutil.copytree(folder / "unet", folder / "unet_ema")
  save_file(tensors, folder / "unet_ema" / SAFE)
  _same(priors.load_diffusers(folder), load("diffusers_old"))


def test_the_root_of_the_hubs_cache_is_followed(pipeline, tmp_path):
  folder, tensors = pipeline
  save_file(tensors, folder / "unet" / SAFE)
  root = tmp_path / "models--someone--faces"
  (root / "refs").mkdir(parents=True)
  (root / "refs" / "main").write_text("abc123\n")
  (root / "snapshots").mkdir()
  folder.rename(root / "snapshots" / "abc123")
  _same(priors.load_diffusers(root), load("diffusers_old"))


def test_latent_pipelines_are_refused(pipeline):
  folder, tensors = pipeline
  save_file(tensors, folder / "unet" / SAFE)
  (folder / "vqvae").mkdir()
  with refused(ValueError, "is a latent pipeline: its unet works on the codes"):
    priors.load_diffusers(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_number_that_is_none_is_refused(bad):
  """It gave exit code 0 and a ruined picture."""
  expected = load("adm")
  name = "conv_in.kernel"
  params = {n: np.array(a) for n, a in expected.params.items()}
  params[name][0, 0, 0, 0] = bad
  with refused(ValueError, f"'{name}' of params must be finite, 1 of its"):
    priors.unet_prior(expected.config, params)
