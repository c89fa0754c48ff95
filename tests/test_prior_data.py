"""What the photo prior is trained on: photographs and batches."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from experiments import prior_sources
from experiments.data import photo_tiles, photographs
from experiments.train_prior import batches, figures
from experiments.train_prior.batches import BatchSettings, Pool
from tests.oracles import quick_jit, refused

TILE = photo_tiles.TILE


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
  found = photo_tiles.read(str(folder))
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
  tiles = photo_tiles.tiles([photo_tiles.Photograph("ramp", "", ramp)])
  assert tiles.shape[1:] == (TILE, TILE, 3) and tiles.dtype == np.uint8
  assert tiles.min() <= 2 and tiles.max() >= 246
  slope = np.diff(tiles[:, :, 0, 0].astype(float), axis=1).mean(1)
  scales = [s for s in photo_tiles.SCALES if 300 * s >= TILE]
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
      photo_tiles.read(str(tmp_path))
  assert not set(photographs.HELD_OUT) & set(photographs.PRIOR)
  for file in prior_sources.names():
    assert pathlib.Path(file).stem not in photographs.HELD_OUT


def test_folders_without_pictures_are_refused(tmp_path):
  with refused(ValueError, "must be a folder with pictures"):
    photo_tiles.read(str(tmp_path))
  _picture(tmp_path / "small.png", 0, (100, 300))
  with refused(ValueError, "small.png must have at least 144 pixels"):
    photo_tiles.read(str(tmp_path))


def test_the_first_broken_picture_is_named_among_others_of_its_name(tmp_path):
  """Whichever thread is done first, the error is that of the first in order."""
  for i, folder in enumerate(("a", "b", "c")):
    (tmp_path / folder).mkdir()
    _picture(tmp_path / folder / "1.png", i)
  for folder in ("b", "c"):
    whole = (tmp_path / folder / "1.png").read_bytes()
    (tmp_path / folder / "1.png").write_bytes(whole[: len(whole) // 2])
  with refused(ValueError, "^b/1.png cannot be read as a picture"):
    photo_tiles.read(str(tmp_path))


# --- batches ------------------------------------------------------------------


def _crops(pool, count, size, settings):
  draw = functools.partial(
    batches.crops, count=count, size=size, settings=settings
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
  draw = quick_jit(batches.noise_levels, static_argnums=(1, 2))
  sigma = np.asarray(draw(jax.random.key(0), 20000, settings), np.float64)
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


# --- spectrum ---------------------------------------------------------------


def test_radial_spectrum_finds_a_wave():
  """A wave of 8 cycles has its power in that ring and its neighbours."""
  wave = np.cos(2 * np.pi * 8 * np.arange(64) / 64)
  images = np.broadcast_to(wave[None, None, :, None], (2, 64, 64, 3))
  found = figures.radial_spectrum(images)
  assert found.frequency[np.argmax(found.power)] == 8 / 64
  near = found.power[6:9].sum() / found.power.sum()
  assert near > 0.99


def test_the_error_of_a_spectrum_is_how_far_one_lies_from_the_next():
  """Of images whose contrast differs, in ring 5, over 40 sets of 50 images."""
  rng = np.random.default_rng(0)
  shape = 40, 50, 16, 16, 1
  contrast = rng.exponential(size=(*shape[:2], 1, 1, 1))
  sets = contrast * rng.standard_normal(shape)
  found = [figures.radial_spectrum(images) for images in sets]
  spread = np.std([each.power[4] for each in found], ddof=1)
  told = np.mean([each.error[4] for each in found])
  assert 0.75 < told / spread < 1.3
  rows = figures.compared(16, sets[0], sets[1])
  assert np.all(rows["decibels"].abs() < 4 * rows["error"])
  # More than go through a transform together.
  many = np.concatenate([*sets[:6]])
  power = np.mean([each.power for each in found[:6]], axis=0)
  np.testing.assert_allclose(figures.radial_spectrum(many).power, power)
