"""Loaded networks against fresh PyTorch ones: every option, and full size.

Needs torch, diffusers and azula, whose copy of guided-diffusion's network is
the oracle of ADM.
"""

import gc
import json

import numpy as np
import pytest

from posterior_jax import priors
from tests import test_loaders
from tests.test_loaders import check_parity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make():
  for package in ("torch", "diffusers", "azula.plugins.adm"):
    pytest.importorskip(package)
  from tests import make_unet_fixtures

  return make_unet_fixtures


REDUCED = {
  "model_channels": 32,
  "in_channels": 3,
  "out_channels": 6,
  "image_size": 64,
  "num_res_blocks": 2,
  "channel_mult": (1, 2, 3),
  "attention_resolutions": (2, 4),
  "num_head_channels": 32,
  "use_scale_shift_norm": True,
  "resblock_updown": True,
}
FULL = {
  "ffhq_10m": {
    **REDUCED,
    "model_channels": 128,
    "num_res_blocks": 1,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "attention_resolutions": (16,),
    "num_head_channels": 64,
  },
  "256x256_diffusion_uncond": {
    **REDUCED,
    "model_channels": 256,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "attention_resolutions": (8, 16, 32),
    "num_head_channels": 64,
  },
}
ADM_CHANGES = {
  "as published": {},
  "gray": {"in_channels": 1, "out_channels": 2},
  "one scale": {"channel_mult": (1,), "attention_resolutions": (1,)},
  "no attention but the middle": {"attention_resolutions": ()},
  "heads": {"num_head_channels": -1, "num_heads": 4},
  "new order": {"use_new_attention_order": True},
  "additive": {"use_scale_shift_norm": False},
  "convolutions": {"resblock_updown": False},
  "narrow first": {"channel_mult": (1, 3, 2)},
}


def check_adm(make, tmp_path, options, sides):
  model, drawn = make.network(make.UNetModel, options)
  path = tmp_path / "weights.pt"
  make.torch.save(drawn, path)
  channels = options["in_channels"]
  x = make.noisy(sides=sides)[:, :channels]
  expected = make.vp_denoised(model, make.ddpm_scheduler(), x)
  del model, drawn
  gc.collect()
  heads = options["num_head_channels"]
  config = priors.ADMConfig(
    head_width=None if heads < 0 else heads,
    heads=options.get("num_heads", 1),
    new_head_order=options.get("use_new_attention_order", False),
  )
  prior = priors.load_adm(path, config=config)
  path.unlink()
  check_parity(prior, **expected)
  return prior


@pytest.mark.parametrize("change", ADM_CHANGES)
def test_adm_equals_guided_diffusion(make, tmp_path, change):
  check_adm(make, tmp_path, REDUCED | ADM_CHANGES[change], (24, 16))


@pytest.mark.parametrize("name", FULL)
def test_adm_equals_guided_diffusion_at_full_size(make, tmp_path, name):
  """All published channels, on small images."""
  prior = check_adm(make, tmp_path, FULL[name], (64, 32))
  assert prior.config == test_loaders.published(name)


DIFFUSERS = {
  "block_out_channels": (16, 32),
  "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
  "norm_num_groups": 8,
}
DIFFUSERS_CHANGES = {
  "defaults": {},
  "asymmetric padding": {"downsample_padding": 0},
  "sine first": {"flip_sin_to_cos": False},
  "shifted rates": {"freq_shift": 1},
  "one head": {"attention_head_dim": None},
  "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
  "norm of the middle": {"attn_norm_num_groups": 4},
  "silent middle": {"add_attention": False},
  "resampled attention": {
    "downsample_type": "resnet",
    "upsample_type": "resnet",
  },
  "one way": {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "upsample_type": "resnet",
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
  },
  "wide step": {"time_embedding_dim": 24, "layers_per_block": 1},
  "coarse epsilon": {"norm_eps": 0.05},
  "variance": {"out_channels": 6},
}


def diffusers_folder(make, tmp_path, options):
  model, _ = make.network(make.UNet2DModel, options)
  folder = tmp_path / "model"
  model.save_pretrained(folder)
  return model, folder


@pytest.mark.parametrize("change", DIFFUSERS_CHANGES)
def test_diffusers_network_equals_its_own(make, tmp_path, change):
  options = DIFFUSERS | DIFFUSERS_CHANGES[change]
  model, folder = diffusers_folder(make, tmp_path, options)
  expected = make.vp_denoised(
    make.answers(model), make.ddpm_scheduler(), make.noisy()
  )
  prior = priors.load_diffusers(folder, parametrisation=priors.VP())
  check_parity(prior, **expected)


SCHEDULES = {
  "linear": {},
  "short": {"num_train_timesteps": 960, "beta_start": 0.001},
  "scaled_linear": {"beta_schedule": "scaled_linear", "beta_end": 0.012},
  "cosine": {"beta_schedule": "squaredcos_cap_v2"},
  "sample": {"prediction_type": "sample"},
  "v_prediction": {"prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_of_diffusers_are_read(make, tmp_path, name):
  model, folder = diffusers_folder(make, tmp_path, DIFFUSERS)
  scheduler = make.ddpm_scheduler(**SCHEDULES[name])
  scheduler.save_pretrained(folder)
  expected = make.vp_denoised(make.answers(model), scheduler, make.noisy())
  check_parity(priors.load_diffusers(folder), **expected)


def test_edm_scheduler_of_diffusers_is_read(make, tmp_path):
  model, folder = diffusers_folder(make, tmp_path, DIFFUSERS)
  make.EDMEulerScheduler().save_pretrained(folder)
  expected = make.edm_denoised(model, make.noisy(), (0.05, 1.0, 30.0))
  check_parity(priors.load_diffusers(folder), **expected)


def test_diffusers_network_at_full_size(make, tmp_path):
  """The shape of google/ddpm-celebahq-256, its config as published."""
  options = {
    key: value
    for key, value in test_loaders.CELEBA.items()
    if not key.startswith("_")
  }
  model, drawn = make.network(make.UNet2DModel, options)
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(test_loaders.CELEBA))
  path = folder / test_loaders.BINARY
  make.torch.save(make.old_names(drawn), path)
  expected = make.vp_denoised(
    make.answers(model), make.ddpm_scheduler(), make.noisy(sides=(64, 32))
  )
  prior = priors.load_diffusers(folder, parametrisation=priors.VP())
  path.unlink()
  check_parity(prior, **expected)
  count = sum(int(np.prod(p.shape)) for p in prior.params.values())
  assert count == sum(p.numel() for p in model.parameters())
