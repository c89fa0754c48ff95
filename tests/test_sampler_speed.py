"""The sampler's throughput: its PyTorch twin, its run, its refusals."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from configs import sampler_speed as config
from experiments import sampler_speed
from experiments.harness import command_line, record
from experiments.peers import torch_sampler
from posterior_jax.base import SamplerState
from tests.oracles import assert_close, refused


def _settings(**changes):
  debug = config.get_config("debug")
  debug.update(changes)
  return command_line.to_settings(sampler_speed.Settings, debug)


@pytest.mark.skipif(
  importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
def test_torch_takes_the_same_steps():
  """Same state, level and noise; a denoiser that only scales."""
  import torch

  settings = _settings(levels=10)
  _, (observation, *_) = sampler_speed.problems(settings)
  sampler = pj.nfc(sampler_speed.config(settings))
  key = jax.random.key(5)
  x = jax.random.normal(key, (1, *observation.y.shape))
  state = SamplerState(x, jnp.asarray(7))

  def denoise(x, sigma):
    return x / (1 + sigma[:, None, None, None])

  expected, info = sampler.step(state, denoise, observation, key)
  noise = jax.random.normal(jax.random.split(key)[1], x.shape)
  sigmas = sampler_speed._levels(sampler_speed.config(settings))
  assert abs(float(info.sigma) / sigmas[7] - 1) < 1e-6

  def tensor(x):
    return torch.tensor(np.asarray(x[0])).permute(0, 3, 1, 2)

  half = np.asarray(observation.operator.transfer)[:, : 64 // 2 + 1]
  found = torch_sampler.step(
    denoise,
    tensor(x),
    tensor(observation.y[None]),
    torch.tensor(half),
    settings.noise_std,
    *(torch.tensor(s, dtype=torch.float32) for s in sigmas[7:9]),
    tensor(noise),
  )
  found = found.permute(0, 2, 3, 1).numpy()
  # Two libraries' float32 transforms, apart by 1e-7, and where the kernel has
  # no gain the step multiplies by sigma^2 / noise_std^2, some hundred.
  assert_close(found, expected.x[0], 1e-4)


@pytest.mark.slow
def test_run_writes_every_form_and_compiles_once(tmp_path):
  with record.Run(tmp_path) as run:
    sampler_speed.speed(_settings(levels=4, repeats=1), run)
  lines = (tmp_path / "sampler_speed.jsonl").read_text().splitlines()
  first, *others = map(json.loads, lines)
  assert first["form"] == "jax" and first["images_per_s"] > 0
  assert first["compilations"] == 0 and first["psnr"] > 10
  assert [row["form"] for row in others] == list(sampler_speed.MODES)
  for row in others:
    assert row["note"] == "torch is timed on CUDA devices only"


def test_compilations_are_counted():
  with sampler_speed.counted_compilations() as count:
    jax.jit(lambda x: x * 3.25)(jnp.ones(7)).block_until_ready()
    assert count() >= 1
    before = count()
  jax.jit(lambda x: x * 4.25)(jnp.ones(7)).block_until_ready()
  assert count() == before


def test_refusals():
  with refused(
    command_line.UsageError, "size must be at least 64 and divisible by 8"
  ):
    _settings(size=60)
  with refused(
    command_line.UsageError, "batch, levels and repeats must be at least 1"
  ):
    _settings(levels=0)
  with refused(command_line.UsageError, "noise_std must be positive, got 0"):
    _settings(noise_std=0.0)
