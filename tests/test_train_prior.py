"""Training of the photo prior: its data, its step, its checkpoints."""

import dataclasses
import functools
import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import train_prior as config
from experiments import (
  dead_leaves,
  photographs,
  prior_batches,
  prior_figures,
  prior_photos,
  prior_sources,
  prior_training,
  record,
  runner,
  train_prior,
)
from experiments.dead_leaves import LeafSettings
from experiments.prior_batches import BatchSettings, Pool
from experiments.prior_checkpoints import Checkpoints, Saved
from posterior_jax import priors
from tests.oracles import quick_jit, refused

TILE = prior_photos.TILE
NETWORK = priors.UNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)


def _settings(folder, **changes):
  debug = config.get_config("debug")
  debug.update({"photographs": str(folder), **changes})
  return runner.to_settings(train_prior.Settings, debug)


def _picture(path, seed, shape=(160, 200)):
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
  PIL.Image.fromarray(pixels).save(path)
  return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("photographs")
  (path / "deep").mkdir()
  _picture(path / "deep" / "b.png", 1)
  _picture(path / "a.png", 2, (150, 144))
  return path


# --- photographs --------------------------------------------------------------


def test_photographs_are_read_in_order_and_named(folder):
  found = prior_photos.read(str(folder))
  assert [p.name for p in found] == ["a.png", "deep/b.png"]
  np.testing.assert_array_equal(
    found[1].pixels,
    np.random.default_rng(1).integers(0, 256, (160, 200, 3), dtype=np.uint8),
  )
  assert len({p.sha256 for p in found}) == 2


def test_tiles_hold_the_reduced_photograph_to_its_borders():
  """A ramp's area average is known, and every border must be in a tile."""
  ramp = np.broadcast_to(
    np.linspace(0, 250, 400)[:, None, None], (400, 300, 3)
  ).astype(np.uint8)
  tiles = prior_photos.tiles([prior_photos.Photograph("ramp", "", ramp)])
  assert tiles.shape[1:] == (TILE, TILE, 3) and tiles.dtype == np.uint8
  assert tiles.min() <= 2 and tiles.max() >= 246
  slope = np.diff(tiles[:, :, 0, 0].astype(float), axis=1).mean(1)
  scales = [s for s in prior_photos.SCALES if 300 * s >= TILE]
  expected = [250 / (400 * s) for s in scales]
  for rate in expected:
    assert np.abs(slope / rate - 1).min() < 0.03
  assert max(slope) < 1.05 * max(expected)


def test_held_out_photographs_are_refused(tmp_path):
  for name in photographs.HELD_OUT:
    image = PIL.Image.open(photographs.path(name))
    path = tmp_path / "copy.jpg"
    image.resize((300, 280)).save(path, quality=60)
    with refused(ValueError, f"looks like {name}"):
      prior_photos.read(str(tmp_path))
  assert not set(photographs.HELD_OUT) & set(photographs.PRIOR)
  for files in prior_sources.PHOTOGRAPHS.values():
    for file in files:
      stem = pathlib.Path(file).stem
      assert stem not in photographs.HELD_OUT


def test_folders_without_pictures_are_refused(tmp_path):
  with refused(ValueError, "must be a folder with pictures"):
    prior_photos.read(str(tmp_path))
  _picture(tmp_path / "small.png", 0, (100, 300))
  with refused(ValueError, "small.png must have at least 144 pixels"):
    prior_photos.read(str(tmp_path))


# --- dead leaves --------------------------------------------------------------


def _leaves(key):
  plain = LeafSettings(
    leaves=250,
    smallest=(3.0, 4.0),
    largest=32.0,
    plain=1.0,
    shading=0.0,
    blur=0.0,
    palette=8,
  )
  colours = _colours()[:, None, None]
  tiles = jnp.asarray(np.broadcast_to(colours, (8, 64, 64, 3)))
  return dead_leaves.images(jax.random.key(key), tiles, count=4, settings=plain)


def _colours():
  return np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)


def test_dead_leaves_have_the_spectrum_of_photographs():
  """Power falls as a power law of exponent 2 to 3 (Lee et al. 2001)."""
  images = np.asarray(_leaves(0)) / 127.5 - 1
  found = prior_figures.radial_spectrum(images)
  inside = (found.frequency > 1 / 22) & (found.frequency < 1 / 4)
  f, power = (np.log(a[inside]) for a in found)
  slope, at = np.polyfit(f, power, 1)
  assert -3.2 < slope < -1.8
  # A law: what is left over is small beside its fall, a factor of e^5.
  assert np.std(power - slope * f - at) < 0.35


def test_dead_leaves_follow_their_key():
  first, again, other = (_leaves(key) for key in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).mean() > 0.5


def test_dead_leaves_take_their_colours_from_the_tiles():
  """Without texture, shading and blur a pixel is a colour or an edge's mix."""
  images = np.asarray(_leaves(3)).astype(int)
  gap = np.abs(images[..., None, :] - _colours()).max(-1).min(-1)
  assert (gap <= 1).mean() > 0.5


# --- batches ------------------------------------------------------------------


def _crops(pool, count, size, settings):
  draw = functools.partial(
    prior_batches.crops, count=count, size=size, settings=settings
  )
  return np.asarray(quick_jit(draw)(jax.random.key(0), pool))


def test_crops_are_parts_of_their_tiles():
  rng = np.random.default_rng(0)
  photos, leaves = (
    rng.integers(0, 256, (k, 24, 24, 3), dtype=np.uint8) for k in (3, 2)
  )
  pool = Pool(jnp.asarray(photos), jnp.asarray(leaves))
  for share, source in ((0.0, photos), (1.0, leaves)):
    plain = BatchSettings(leaf_share=share, jitter=0.0)
    x = _crops(pool, 5, 16, plain)
    pixels = np.rint((x + 1) * 127.5).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(source, (16, 16), (1, 2))
    windows = np.moveaxis(windows, 3, -1)  # [k, 9, 9, 16, 16, 3]
    for image in pixels:
      turned = [image, image.transpose(1, 0, 2)]
      turned += [np.rot90(a, k) for a in turned for k in (1, 2, 3)]
      found = [(windows == a).all((-1, -2, -3)).any() for a in turned]
      assert any(found)


def test_noise_levels_cover_the_range():
  settings = BatchSettings()
  sigma = np.asarray(
    prior_batches.noise_levels(jax.random.key(0), 20000, settings), np.float64
  )
  low, high = settings.noise_range
  assert low * 0.999 <= sigma.min() < 2 * low
  assert high / 2 < sigma.max() <= high * 1.001
  # Three quarters about the median, and what is even beside them.
  near = (sigma > 0.118) & (sigma < 0.392)
  normal = 0.75 * 0.4105  # of the log-normal, by its distribution function
  even = 0.25 * np.log(0.392 / 0.118) / np.log(high / low)
  assert abs(near.mean() - normal - even) < 0.02


def test_jitter_keeps_the_range_and_changes_colours():
  pool = Pool(*(jnp.full((2, 16, 16, 3), v, jnp.uint8) for v in (200, 40)))
  x = _crops(pool, 64, 8, BatchSettings())
  assert np.abs(x).max() <= 1
  assert x.std(0).min() > 0.05
  np.testing.assert_array_equal(x[:, :1, :1] + np.zeros_like(x), x)


def test_refused_batches():
  with refused(ValueError, "leaf_share and noise_uniform"):
    BatchSettings(leaf_share=1.2)
  with refused(ValueError, "noise_range must be two increasing"):
    BatchSettings(noise_range=(2.0, 1.0))


# --- the step -----------------------------------------------------------------


def _step(state, mesh=None, key=0, **changes):
  rng = np.random.default_rng(7)
  pool = Pool(
    *(
      jnp.asarray(rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8))
      for _ in range(2)
    )
  )
  mesh = mesh or Mesh(np.array(jax.devices()[:1]), ("data",))
  # Placed as the step leaves it, so that the next one compiles nothing.
  state = jax.device_put(state, NamedSharding(mesh, P()))
  options = {
    "size": 16,
    "count": 4,
    "config": NETWORK,
    "dtype": "float32",
    "optim": prior_training.OptimSettings(warmup=0),
    "batch": BatchSettings(),
    "mesh": mesh,
  }
  return prior_training.step(
    state, pool, jax.random.key(key), jnp.float32(100), **(options | changes)
  )


def _start():
  return prior_training.init(priors.initial_params(NETWORK, jax.random.key(0)))


def test_first_loss_is_that_of_the_linear_estimate():
  """F = 0, so the weighted error is E |c_skip x - x0|^2 / c_out^2."""
  loss = _step(_start())[1].loss
  # Pixels drawn evenly have variance 1/3 instead of the assumed 1/4; noise
  # and signal share the error by sigma, so it lies between 1 and 4/3.
  assert 0.7 < float(loss) < 1.6


def test_gradient_that_is_not_finite_changes_nothing():
  params = priors.initial_params(NETWORK, jax.random.key(0))
  params["enter.bias"] = params["enter.bias"].at[0].set(jnp.nan)
  params["leave.kernel"] = params["leave.kernel"] + 1.0
  before = jax.tree.map(np.asarray, params)
  state, info = _step(prior_training.init(params))
  assert not np.isfinite(info.gradient) and int(state.step) == 1
  for name, value in before.items():
    np.testing.assert_array_equal(state.params[name], value)
  for leaf in jax.tree.leaves(state.moments):
    np.testing.assert_array_equal(leaf, 0)


def test_average_follows_the_parameters():
  first, _ = _step(_start())
  held = jax.tree.map(np.asarray, first)
  second, _ = _step(first)
  keep = 2 / 11  # a young average: (step + 1) / (step + 10) at step 1
  for name, value in second.average.items():
    expected = keep * held.average[name] + (1 - keep) * second.params[name]
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_step_does_not_depend_on_the_number_of_devices():
  if jax.device_count() < 4:
    pytest.skip("needs 4 devices")
  whole, info = _step(_start())
  mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
  spread, again = _step(_start(), mesh=mesh)
  np.testing.assert_allclose(info.loss, again.loss, rtol=1e-5)
  # Adam's first step is the gradient's sign, whatever its size: compare the
  # moments, which are linear in it.
  for a, b in zip(*(jax.tree.leaves(s.moments.mu) for s in (whole, spread))):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_learning_rate_ends_in_zero():
  optim = prior_training.OptimSettings(rate=2.0, warmup=10, constant=0.3)
  steps = np.array([0, 9, 29, 65, 100])
  rate = [
    float(prior_training.learning_rate(jnp.float32(s), jnp.float32(100), optim))
    for s in steps
  ]
  np.testing.assert_allclose(rate, [0.2, 2, 2, 1, 0], atol=1e-6)
  unknown = prior_training.learning_rate(
    jnp.float32(50), jnp.float32(np.inf), optim
  )
  assert float(unknown) == 2.0


# --- the run ------------------------------------------------------------------


def _train(settings, path):
  with record.Run(
    path, command=["python", "-m", "experiments.train_prior"]
  ) as r:
    train_prior.train(settings, r)
  return r.folder


@pytest.mark.slow
def test_resumed_run_is_bit_identical(tmp_path, folder):
  settings = _settings(folder, steps=6, save_every=100)
  whole = _train(settings, tmp_path / "whole")

  class Stopped(Exception):
    pass

  real = prior_training.step

  def stopping(state, *arguments, **options):
    if int(state.step) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return real(state, *arguments, **options)

  prior_training.step = stopping
  try:
    with pytest.raises(SystemExit, match="resume="):
      _train(settings, tmp_path / "part")
  finally:
    prior_training.step = real
  resumed = dataclasses.replace(settings, resume=str(tmp_path / "part"))
  rest = _train(resumed, tmp_path / "rest")
  first, last = (
    (path / "photo_prior.safetensors").read_bytes() for path in (whole, rest)
  )
  assert first == last
  like = prior_training.init(
    priors.initial_params(settings.network, jax.random.key(1))
  )
  states = [Checkpoints(path).restore(like).state for path in (whole, rest)]
  for a, b in zip(*map(jax.tree.leaves, states)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_debug_run_leaves_everything(tmp_path):
  """From the command line, on the installed photographs."""
  argv = ["train_prior", f"--config={runner.CONFIGS}/train_prior.py:debug"]
  runner.main(
    "train_prior",
    train_prior.Settings,
    train_prior.train,
    argv=[*argv, f"--workdir={tmp_path / 'run'}"],
  )
  prior = priors.load_prior(tmp_path / "run" / "photo_prior.json")
  assert prior.config == NETWORK
  said = json.loads((tmp_path / "run" / "photo_prior.json").read_text())
  assert sorted(said["photographs"]) == sorted(photographs.PRIOR)
  assert said["steps"] == 6
  text = (tmp_path / "run" / "report.html").read_text()
  assert 'id="spectrum"' in text and text.count("<figure>") == 3


def test_checkpoints_refuse_other_networks(tmp_path):
  with refused(ValueError, "resume must name a run's folder"):
    Checkpoints(tmp_path / "empty").restore(_start())
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(Saved(_start(), 9.0))
  checkpoints.close()
  assert Checkpoints(tmp_path).restore(_start()).total == 9.0
  other = priors.UNetConfig(widths=(8, 24), blocks=(1, 1), embedding=16)
  params = priors.initial_params(other, jax.random.key(0))
  with refused(ValueError, "resume must name a run of the same network"):
    Checkpoints(tmp_path).restore(prior_training.init(params))


def test_planned_steps_fill_the_minutes(tmp_path, monkeypatch, folder):
  settings = _settings(folder, minutes=5.0, steps=0)
  run = record.Run(tmp_path)
  monkeypatch.setattr(run, "seconds", lambda: 60.0)
  monkeypatch.setattr(train_prior.time, "monotonic", lambda: 130.0)
  early = train_prior._planned((100, 120.0), 150, settings, run)
  assert early == np.inf
  found = train_prior._planned((100, 105.0), 150, settings, run)
  assert found == 150 + round((300 * 0.97 - 60) / 0.5)


def test_refused_settings(folder):
  with pytest.raises(ValueError, match="one of minutes and steps"):
    _settings(folder, minutes=1.0)
  with pytest.raises(ValueError, match="sizes must be divisible"):
    _settings(folder, sizes=(20, 31))


def test_radial_spectrum_finds_a_wave():
  """A wave of 8 cycles has its power in that ring and its neighbours."""
  wave = np.cos(2 * np.pi * 8 * np.arange(64) / 64)
  images = np.broadcast_to(wave[None, None, :, None], (2, 64, 64, 3))
  found = prior_figures.radial_spectrum(images)
  assert found.frequency[np.argmax(found.power)] == 8 / 64
  near = found.power[6:9].sum() / found.power.sum()
  assert near > 0.99
