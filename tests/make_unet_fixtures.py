"""Writes tests/fixtures/unets: small random networks and what they compute.

  python -m tests.make_unet_fixtures

needs torch, diffusers (0.42 wrote the committed files) and azula (0.11), whose
copy of guided-diffusion's UNet is the oracle of ADM. Files of weights are as
`torch.save` and `save_pretrained` write them; denoised images come from the
schedulers of diffusers.
"""

import pathlib

import numpy as np
import torch
from azula.plugins.adm._src.unet import UNetModel
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "unets"
SIDES = 8, 16
STEPS = 60, 420, 950

# ADM has 32 groups, so that 32 channels are the least.
ADM = {
  "model_channels": 32,
  "in_channels": 3,
  "image_size": 64,
  "use_scale_shift_norm": True,
  "resblock_updown": True,
  "num_head_channels": 16,
}
# As the published ones, and with every option the other way.
ADM_CASES = {
  "adm": {
    **ADM,
    "out_channels": 6,
    "num_res_blocks": 1,
    "channel_mult": (1, 1, 2),
    "attention_resolutions": (4,),
  },
  "adm_other": {
    **ADM,
    "out_channels": 3,
    "num_res_blocks": 2,
    "channel_mult": (1, 2),
    "attention_resolutions": (1, 2),
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "num_head_channels": -1,
    "num_heads": 4,
    "use_new_attention_order": True,
  },
}
SMALL = {"block_out_channels": (4, 8), "norm_num_groups": 2}
# As google/ddpm-celebahq-256 is; with every option the other way; with stored
# rates of waves, as VE networks have.
DIFFUSERS_CASES = {
  "diffusers_old": {
    **SMALL,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
  },
  "diffusers_new": {
    **SMALL,
    "block_out_channels": (4, 8, 8),
    "down_block_types": (
      "ResnetDownsampleBlock2D",
      "AttnDownBlock2D",
      "DownBlock2D",
    ),
    "up_block_types": (
      "UpBlock2D",
      "AttnUpBlock2D",
      "ResnetUpsampleBlock2D",
    ),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
  },
  "diffusers_fourier": {
    **SMALL,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "time_embedding_type": "fourier",
    "add_attention": False,
  },
}


def draw(model, *, seed=0):
  """Random tensors for every parameter by name, in float16.

  They are windows of a pool for each kind, so that a file of them is small and
  has storages that are shared. Fresh networks will not do: they are zero where
  it matters. The first layer is faint, so that norms after it feel epsilon.
  """
  rng = np.random.default_rng(seed)
  kinds = {}
  for name, param in model.named_parameters():
    kinds.setdefault(_kind(name, param), []).append((name, param))
  drawn = {}
  for kind, params in kinds.items():
    size = max(p.numel() for _, p in params) + 1024
    entering = max(p[0].numel() for _, p in params)
    # Outputs of layers of order 1, so that no softmax is a choice of one.
    mean, std = (1, 0.3) if kind == "norm" else (0, 1.5 / np.sqrt(entering))
    std *= 0.01 if kind == "first" else 1
    pool = torch.tensor(rng.normal(mean, std, size), dtype=torch.float16)
    for name, param in params:
      start = int(rng.integers(0, size - param.numel() + 1))
      drawn[name] = pool[start : start + param.numel()].view(param.shape)
  return drawn


def _kind(name, param):
  if name.startswith(("conv_in", "input_blocks.0.")):
    return "first"
  if name.endswith("weight") and param.dim() == 1:
    return "norm"
  attends = any(part in name for part in ("qkv", "to_q", "to_k"))
  return "attends" if attends and param.dim() > 1 else "other"


def network(kind, options, *, seed=0):
  """A network of random parameters, and those in float16."""
  model = kind(**options).eval()
  drawn = draw(model, seed=seed)
  model.load_state_dict({name: t.float() for name, t in drawn.items()})
  return model, drawn


def noisy(seed=0, sides=SIDES):
  """What a network sees of images in [-1, 1], one a step, [N, 3, H, W]."""
  rng, count = np.random.default_rng(seed), len(STEPS)
  return torch.tensor(
    rng.uniform(-1, 1, (count, 3, *sides)), dtype=torch.float32
  )


def answers(model):
  """What a model of diffusers says, as a function of image and step."""
  return lambda x, step: model(x, step).sample


@torch.no_grad()
def vp_denoised(model, scheduler, x, steps=STEPS):
  """x as the network sees it at some steps -> noisy x, sigma, denoised."""
  rows = []
  for row, step in zip(x, steps, strict=True):
    answer = model(row[None], torch.tensor([step]))[:, : len(row)]
    kept = scheduler.alphas_cumprod[step].double()
    clean = scheduler.step(answer, step, row[None]).pred_original_sample
    sigma = torch.sqrt((1 - kept) / kept)
    rows.append((row / torch.sqrt(kept).float(), sigma, clean[0]))
  return _numpy(*map(torch.stack, zip(*rows)))


@torch.no_grad()
def ve_denoised(model, x, sigmas):
  """The network's answer is the score: D = x + sigma^2 s."""
  sigma = torch.tensor(sigmas, dtype=torch.float32)
  wide = sigma[:, None, None, None]
  noisy_x = wide * x
  score = model(noisy_x, sigma).sample
  return _numpy(noisy_x, sigma, noisy_x + wide**2 * score)


@torch.no_grad()
def edm_denoised(model, x, sigmas):
  """By the preconditioning of diffusers' EDM schedulers."""
  scheduler = EDMEulerScheduler()
  rows = []
  for row, sigma in zip(x, sigmas, strict=True):
    sigma = torch.tensor(sigma)
    seen = scheduler.precondition_inputs(sigma * row[None], sigma)
    told = scheduler.precondition_noise(sigma)[None]
    answer = model(seen, told).sample
    clean = scheduler.precondition_outputs(sigma * row[None], answer, sigma)
    rows.append((sigma * row, sigma, clean[0]))
  return _numpy(*map(torch.stack, zip(*rows)))


def _numpy(x, sigma, denoised):
  turned = (a.permute(0, 2, 3, 1).float().numpy() for a in (x, denoised))
  x, denoised = turned
  return {"x": x, "sigma": sigma.float().numpy(), "denoised": denoised}


def ddpm_scheduler(**options):
  """The linear schedule, which leaves what it predicts as it is."""
  return DDPMScheduler(clip_sample=False, **options)


def old_names(tensors):
  """As older versions of diffusers named the layers of attention."""
  pairs = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
  pairs[".to_out.0."] = ".proj_attn."
  renamed = {}
  for name, tensor in tensors.items():
    for new, old in pairs.items():
      name = name.replace(new, old)
    renamed[name] = tensor
  return renamed


def storages():
  """Tensors of every kind and stride."""
  whole = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
  half = torch.linspace(-3, 3, 7)
  return {
    "whole": whole,
    "turned": whole.permute(2, 0, 1),
    "part": whole[1:, ::2, 3],
    "spread": torch.tensor([2.5]).expand(4, 3),
    "parameter": torch.nn.Parameter(whole[2].T),
    "bfloat16": half.bfloat16()[2:],
    "float16": half.half(),
    "float64": half.double(),
    "int64": torch.arange(-2, 3),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
  }


def main():
  """Writes all cases."""
  FIXTURES.mkdir(parents=True, exist_ok=True)
  found = {}
  for case, options in ADM_CASES.items():
    model, drawn = network(UNetModel, options)
    torch.save(drawn, FIXTURES / f"{case}.pt")
    found[case] = vp_denoised(model, ddpm_scheduler(), noisy())
  for case, options in DIFFUSERS_CASES.items():
    found[case] = _write_diffusers(case, options)
  torch.save(storages(), FIXTURES / "storages.pt")
  for name, tensor in storages().items():
    found.setdefault("storages", {})[name] = (
      tensor.detach().to(torch.float64).numpy()
    )
  flat = {f"{a}/{b}": v for a, part in found.items() for b, v in part.items()}
  np.savez_compressed(FIXTURES / "expected.npz", **flat)
  for path in sorted(FIXTURES.rglob("*")):
    print(path.relative_to(FIXTURES), path.stat().st_size)


def _write_diffusers(case, options):
  model, drawn = network(UNet2DModel, options)
  folder = FIXTURES / case
  model.save_pretrained(folder)
  if case.endswith("fourier"):
    return ve_denoised(model, noisy(), (0.05, 1.0, 30.0))
  scheduler = ddpm_scheduler()
  if case.endswith("old"):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(old_names(drawn), folder / "diffusion_pytorch_model.bin")
  else:
    scheduler = ddpm_scheduler(
      beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"
    )
  scheduler.save_pretrained(folder)
  return vp_denoised(answers(model), scheduler, noisy())


if __name__ == "__main__":
  main()
