"""Loaded networks against PyTorch, and every tensor of a file by name."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import posterior_jax
from posterior_jax import priors
from posterior_jax.priors.checkpoints import (
  adm,
  diffusers_config,
  diffusers_unet,
  torch_file,
)
from posterior_jax.priors.learned import REACH, param_shapes
from tests import oracles
from tests.oracles import refused

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "unets"
SAFE = "diffusion_pytorch_model.safetensors"
BINARY = "diffusion_pytorch_model.bin"
SMALL_HEADS = priors.ADMConfig(head_width=16)
OTHER = priors.ADMConfig(head_width=None, heads=4, new_head_order=True)


def load(case, **options):
  if case == "adm":
    return priors.load_adm(FIXTURES / "adm.pt", config=SMALL_HEADS, **options)
  if case == "adm_other":
    return priors.load_adm(FIXTURES / f"{case}.pt", config=OTHER, **options)
  if case == "diffusers_fourier":
    options["parametrisation"] = priors.VE()
  return priors.load_diffusers(FIXTURES / case, **options)


def expected(case):
  """Noisy images, their noise, and what PyTorch makes of them."""
  with np.load(FIXTURES / "expected.npz") as file:
    return tuple(file[f"{case}/{k}"] for k in ("x", "sigma", "denoised"))


def answer(x, sigma, denoised):
  """What was taken off x in units of the noise: the network's own size."""
  return (x - denoised) / sigma[:, None, None, None]


def check_parity(prior, x, sigma, denoised):
  found = np.asarray(oracles.quick_jit(prior.denoise)(x, sigma))
  assert found.shape == x.shape and found.dtype == np.float32
  oracles.assert_close(
    answer(x, sigma, found), answer(x, sigma, denoised), oracles.PARITY
  )


CASES = (
  "adm",
  "adm_other",
  "diffusers_old",
  "diffusers_new",
  "diffusers_fourier",
)


@pytest.mark.parametrize(
  "case",
  [
    pytest.param(
      case,
      marks=[] if case in ("adm", "diffusers_new") else [pytest.mark.slow],
    )
    for case in CASES
  ],
)
def test_loaded_network_equals_pytorch(case):
  check_parity(load(case), *expected(case))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("case", "mistake"),
  [
    ("adm", {"epsilon": 1e-6}),
    ("adm", {"cos_first": False}),
    ("adm", {"head_width": 32}),
    ("adm_other", {"padding": 0}),
    ("diffusers_old", {"epsilon": 1e-5}),
    ("diffusers_old", {"cos_first": True}),
    ("diffusers_old", {"shift": 0}),
    ("diffusers_old", {"padding": 1}),
    ("diffusers_old", {"head_width": 4}),
  ],
)
def test_parity_would_see_a_mistake(case, mistake):
  """The fixtures feel every option a hundred times more than rounding."""
  x, sigma, denoised = expected(case)
  prior = load(case)
  config = dataclasses.replace(prior.config, **mistake)
  wrong = dataclasses.replace(prior, config=config)
  found = oracles.quick_jit(wrong.denoise)(x, sigma)
  error = oracles.error(answer(x, sigma, found), answer(x, sigma, denoised))
  assert error > 100 * oracles.PARITY


def test_schedules_are_those_of_the_files():
  assert load("adm").config.parametrisation == priors.VP()
  assert load("diffusers_old").config.parametrisation == priors.VP()
  assert load("diffusers_new").config.parametrisation == priors.VP(
    schedule="cosine", prediction="v_prediction"
  )
  loaded = load("diffusers_old", parametrisation=priors.EDM(0.3))
  assert loaded.config.parametrisation == priors.EDM(0.3)


# Tensors and parameters in millions of the published files, as PyTorch counts.
PUBLISHED = {
  "ffhq_10m": (362, 93.56),
  "256x256_diffusion_uncond": (566, 552.81),
  "ddpm-celebahq-256": (450, 113.67),
}
CELEBA = {
  "_class_name": "UNet2DModel",
  "_diffusers_version": "0.0.4",
  "act_fn": "silu",
  "attention_head_dim": None,
  "block_out_channels": [128, 128, 256, 256, 512, 512],
  "center_input_sample": False,
  "down_block_types": [
    *["DownBlock2D"] * 4,
    "AttnDownBlock2D",
    "DownBlock2D",
  ],
  "downsample_padding": 0,
  "dropout": 0.0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "in_channels": 3,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-06,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 256,
  "time_embedding_type": "positional",
  "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}


def published(name):
  """Shape of a published network."""
  if name == "ddpm-celebahq-256":
    return diffusers_config.read_network(CELEBA, priors.VP())
  width, blocks, attention = (
    (128, 1, (4,)) if name == "ffhq_10m" else (256, 2, (3, 4, 5))
  )
  flags = tuple(level in attention for level in range(6))
  return priors.DDPMConfig(
    widths=tuple(width * m for m in (1, 1, 2, 2, 4, 4)),
    blocks=blocks,
    attention=flags,
    attention_up=flags,
    down=("residual",) * 5,
    up=("residual",) * 5,
    features=width,
    embedding=4 * width,
    head_width=64,
    outputs=6,
  )


@pytest.mark.parametrize(
  "name",
  [
    "ffhq_10m",
    *(pytest.param(n, marks=pytest.mark.slow) for n in list(PUBLISHED)[1:]),
  ],
)
def test_published_files_have_as_many_tensors_and_parameters(name):
  network = published(name)
  if name == "ddpm-celebahq-256":
    found = diffusers_unet.sources(network, old_names=True)
  else:
    found = adm.sources(network, priors.ADMConfig())
  shapes = {source.name: source.shape for source in found.values()}
  count = sum(int(np.prod(shape)) for shape in shapes.values())
  assert (len(shapes), round(count / 1e6, 2)) == PUBLISHED[name]
  ours = param_shapes(network).values()
  assert sum(int(np.prod(shape)) for shape in ours) == count
  if name != "ddpm-celebahq-256":
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}
    assert adm.infer(name, tensors, priors.ADMConfig()) == network


def test_safetensors_and_pt_give_the_same(tmp_path):
  for case, config in (("adm", SMALL_HEADS), ("adm_other", OTHER)):
    tensors = torch_file.read(FIXTURES / f"{case}.pt")
    dense = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    path = tmp_path / f"{case}.safetensors"
    save_file(dense, path)
    same = priors.load_adm(path, config=config)
    expected = load(case)
    assert same.config == expected.config
    for name, value in expected.params.items():
      np.testing.assert_array_equal(same.params[name], value)


def test_old_and_new_names_of_attention_give_the_same(tmp_path):
  """And a pipeline's directory, whose schedule lies beside the network."""
  folder = tmp_path / "pipeline"
  shutil.copytree(FIXTURES / "diffusers_old", folder / "unet")
  (folder / "scheduler").mkdir()
  (folder / "unet" / "scheduler_config.json").rename(
    folder / "scheduler" / "scheduler_config.json"
  )
  (folder / "unet" / BINARY).unlink()
  tensors = torch_file.read(FIXTURES / "diffusers_old" / BINARY)
  assert any(".proj_attn." in name for name in tensors)
  renamed = {}
  for name, tensor in tensors.items():
    for old, new in (
      (".query.", ".to_q."),
      (".key.", ".to_k."),
      (".value.", ".to_v."),
      (".proj_attn.", ".to_out.0."),
    ):
      name = name.replace(old, new)
    renamed[name] = np.ascontiguousarray(tensor)
  save_file(renamed, folder / "unet" / SAFE)
  same, expected = priors.load_diffusers(folder), load("diffusers_old")
  assert same.config == expected.config
  for name, value in expected.params.items():
    np.testing.assert_array_equal(same.params[name], value)


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
  x, sigma, denoised = expected("diffusers_old")
  prior = load("diffusers_old", dtype="bfloat16")
  found = oracles.quick_jit(prior.denoise)(x, sigma)
  assert found.dtype == jnp.float32
  rough, exact = answer(x, sigma, found), answer(x, sigma, denoised)
  # Eight bits at each of about forty layers.
  assert 1e-4 < oracles.error(rough, exact) < 0.1


@pytest.mark.slow
def test_loaded_prior_restores():
  """NFC runs on it, without a retrace for new weights; silent, it is x."""
  prior = load("diffusers_old")
  silent = {
    name: 0 * p for name, p in prior.params.items() if "conv_out" in name
  }
  other = dataclasses.replace(prior, params=prior.params | silent)
  spectrum = priors.power_law_spectrum(8, 16)
  operator = posterior_jax.operators.gaussian_blur(
    (8, 16, 3), size=3, std=0.7, boundary="circular"
  )
  truth = priors.gaussian_prior(spectrum).sample(jax.random.key(0), (1,), 3)
  observation = posterior_jax.Observation(
    operator.forward(truth), operator, 0.1
  )
  # Two levels and no VJP: each would compile the network once more.
  config = posterior_jax.NFCConfig(levels=2)
  sampler = posterior_jax.nfc(config, spectrum=spectrum)
  traced = []

  @oracles.quick_jit
  def run(denoise, key):
    traced.append(0)
    return posterior_jax.run(sampler, denoise, observation, key, num_samples=2)

  key = jax.random.key(1)
  samples, _ = run(prior.denoise, key)
  found, _ = run(other.denoise, key)
  assert samples.shape == (2, 1, 8, 16, 3) and len(traced) == 1
  assert np.isfinite(samples).all()

  @jax.tree_util.Partial
  def within_reach(x, sigma):
    furthest = (1 + REACH * sigma)[:, None, None, None]
    return jnp.clip(x, -furthest, furthest)

  expected, _ = run(within_reach, key)
  # Levels start at sigma 100, of which float32 keeps 1e-7.
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
  assert np.abs(samples - expected).max() > 0.1


def _adm_with(tmp_path, changes, name="changed.safetensors"):
  """The small ADM network with tensors replaced, or left out where None."""
  tensors = torch_file.read(FIXTURES / "adm.pt") | changes
  path = tmp_path / name
  save_file(
    {n: np.ascontiguousarray(t) for n, t in tensors.items() if t is not None},
    path,
  )
  return path


@pytest.mark.parametrize(
  "name",
  [
    "time_embed.2.bias",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.emb_layers.1.weight",
    "input_blocks.5.1.qkv.bias",
    "middle_block.1.proj_out.weight",
    "output_blocks.1.2.out_layers.3.weight",
    "output_blocks.5.0.skip_connection.bias",
    "out.2.weight",
  ],
)
def test_each_tensor_of_adm_is_needed_as_it_is(tmp_path, name):
  tensor = torch_file.read(FIXTURES / "adm.pt")[name]
  for change, pattern in (
    (None, f"changed.safetensors must hold '{name}'"),
    (tensor[..., :-1], f"'{name}' of changed.safetensors must have shape"),
    (tensor.astype(np.int32), f"'{name}' .* must be floating point, got int32"),
  ):
    path = _adm_with(tmp_path, {name: change})
    # A kernel cut short may read as a network of other sizes.
    cut = change is not None and change.shape != tensor.shape
    with refused(ValueError, "'.*'" if cut else pattern):
      priors.load_adm(path, config=SMALL_HEADS)


def test_other_networks_are_refused_by_the_name_of_a_tensor(tmp_path):
  zero = np.zeros((3, 4), np.float32)
  path = _adm_with(tmp_path, {"sqrt_alphas": zero})
  with refused(ValueError, "must not hold 'sqrt_alphas'"):
    priors.load_adm(path, config=SMALL_HEADS)
  path = _adm_with(tmp_path, {"label_emb.weight": zero})
  with refused(ValueError, "'label_emb.weight': the network wants a class"):
    priors.load_adm(path, config=SMALL_HEADS)
  with refused(ValueError, "must hold 'output_blocks.0.0.out_layers.3.weight'"):
    priors.load_adm(FIXTURES / "diffusers_old" / BINARY)
  with refused(ValueError, "must hold 'output_blocks.0.0.out_layers.3.weight'"):
    priors.load_adm(FIXTURES / "storages.pt")
  with refused(ValueError, "'time_embed.0.weight' .* must have 2 axes"):
    priors.load_adm(_adm_with(tmp_path, {"time_embed.0.weight": zero[0]}))
  with refused(ValueError, "head_width, 64; got 32"):
    priors.load_adm(FIXTURES / "adm_other.pt")


def test_missing_and_broken_files_are_refused(tmp_path):
  with refused(FileNotFoundError, "path must be a file of weights"):
    priors.load_adm(tmp_path / "none.pt")
  whole = _adm_with(tmp_path, {}).read_bytes()
  path = tmp_path / "cut.safetensors"
  path.write_bytes(whole[:-100])
  with refused(ValueError, "cut.safetensors is truncated or not safetensors"):
    priors.load_adm(path)
  whole = (FIXTURES / "adm.pt").read_bytes()
  path = tmp_path / "cut.pt"
  path.write_bytes(whole[: len(whole) // 2])
  with refused(ValueError, "cut.pt is truncated"):
    priors.load_adm(path)
  with refused(ValueError, "dtype must be float32 or bfloat16"):
    load("adm", dtype="float16")


def test_images_that_do_not_fit_are_refused():
  prior = load("adm")
  assert prior.config.unit == 4
  for shape in ((1, 8, 6, 3), (1, 8, 8, 1), (8, 8, 3)):
    with refused(ValueError, "x must have shape .* divisible by 4"):
      prior.denoise(jnp.zeros(shape), jnp.ones(1))


def _diffusers_with(tmp_path, *, network=(), schedule=(), tensors=()):
  """The new-named network with changes to one of its files."""
  folder = tmp_path / "model"
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(FIXTURES / "diffusers_new", folder)
  for name, changes in (
    ("config.json", network),
    ("scheduler_config.json", schedule),
  ):
    said = json.loads((folder / name).read_text()) | dict(changes)
    said = {key: value for key, value in said.items() if value != "left out"}
    (folder / name).write_text(json.dumps(said))
  kept = load_file(folder / SAFE) | dict(tensors)
  save_file({n: t for n, t in kept.items() if t is not None}, folder / SAFE)
  return folder


def test_tensors_of_diffusers_are_needed_as_they_are(tmp_path):
  name = "down_blocks.1.attentions.0.to_out.0.weight"
  for change, pattern in (
    (None, f"{SAFE} must hold '{name}'"),
    (np.zeros((8, 9), np.float32), f"'{name}' .* must have shape \\(8, 8\\)"),
    (np.zeros((8, 8), np.int64), f"'{name}' .* must be floating point"),
  ):
    folder = _diffusers_with(tmp_path, tensors={name: change})
    with refused(ValueError, pattern):
      priors.load_diffusers(folder)
  extra = {"class_embedding.weight": np.zeros((2, 2), np.float32)}
  with refused(ValueError, "must not hold 'class_embedding.weight'"):
    priors.load_diffusers(_diffusers_with(tmp_path, tensors=extra))
  wrong = {"block_out_channels": [4, 8, 16]}
  with refused(ValueError, "'down_blocks.2..*must have shape"):
    priors.load_diffusers(_diffusers_with(tmp_path, network=wrong))
  wrong = {"layers_per_block": 2}
  with refused(ValueError, "must hold 'down_blocks.0.*'"):
    priors.load_diffusers(_diffusers_with(tmp_path, network=wrong))


@pytest.mark.parametrize(
  ("key", "value", "pattern"),
  [
    ("_class_name", "UNet2DConditionModel", "_class_name .* 'UNet2DModel'"),
    ("act_fn", "mish", "act_fn of config.json must be one of 'silu'"),
    ("num_class_embeds", 10, "num_class_embeds"),
    ("center_input_sample", True, "center_input_sample"),
    ("resnet_kernel", "fir", "'resnet_kernel', which is not known"),
    ("down_block_types", ["SkipDownBlock2D"] * 3, "got 'SkipDownBlock2D'"),
    ("up_block_types", ["UpBlock2D"] * 2, "as many scales"),
    ("time_embedding_type", "fourier", "'fourier' and ScoreSdeVeScheduler"),
    ("norm_num_groups", 3, "divisible by groups, 3"),
    ("norm_num_groups", None, "norm_num_groups .* whole number, got None"),
    ("attention_head_dim", 5, "head_width, 5; got 8"),
    ("attn_norm_num_groups", 3, "middle_groups must divide 8, got 3"),
    ("out_channels", 1, "outputs must be at least channels, 3, got 1"),
    ("freq_shift", 2, "shift must be below half of features, 2"),
  ],
)
def test_configs_that_are_not_computed_are_refused(
  tmp_path, key, value, pattern
):
  folder = _diffusers_with(tmp_path, network={key: value})
  with refused(ValueError, pattern):
    priors.load_diffusers(folder)


@pytest.mark.parametrize(
  ("changes", "pattern"),
  [
    (
      {"_class_name": "FlowMatchScheduler", "beta_schedule": "left out"},
      "FlowMatchScheduler",
    ),
    ({"beta_schedule": "sigmoid"}, "beta_schedule of DDPMScheduler"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas of DDPMScheduler"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ({"prediction_type": "flow"}, "prediction must be one of"),
    ({"_class_name": "ScoreSdeVeScheduler"}, "go together"),
  ],
)
def test_schedules_that_are_not_computed_are_refused(
  tmp_path, changes, pattern
):
  folder = _diffusers_with(tmp_path, schedule=changes)
  with refused(ValueError, pattern):
    priors.load_diffusers(folder)


def test_schedulers_of_edm_and_score_networks_are_known():
  said = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.3}
  assert diffusers_config.read_schedule(said) == priors.EDM(0.3)
  said = {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0}
  assert diffusers_config.read_schedule(said) == priors.VE()


def test_directories_that_lack_a_file_are_refused(tmp_path):
  folder = _diffusers_with(tmp_path)
  (folder / SAFE).unlink()
  with refused(FileNotFoundError, f"must hold {SAFE} or .* or {BINARY} or"):
    priors.load_diffusers(folder)
  (folder / "scheduler_config.json").unlink()
  with refused(FileNotFoundError, "must hold scheduler_config.json"):
    priors.load_diffusers(folder)
  (folder / "config.json").write_text("[1]")
  with refused(ValueError, "config.json must hold a dict"):
    priors.load_diffusers(folder)
  (folder / "config.json").write_text("{")
  with refused(ValueError, "config.json is no JSON"):
    priors.load_diffusers(folder)
  (folder / "config.json").unlink()
  with refused(FileNotFoundError, "must hold config.json"):
    priors.load_diffusers(folder)
