"""Dead leaves: statistics, geometry, textures, depth, refusals."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.dead_leaves import (
  contours,
  fields,
  images,
  planes,
  shapes,
  textures,
)
from experiments.data.dead_leaves.planes import Plane
from experiments.data.dead_leaves.settings import LeafSettings
from experiments.train_prior import figures
from tests.oracles import quick_jit, refused

SIZE = 64
PLAIN = LeafSettings(
  leaves=80, smallest=(4.0, 5.0), largest=32.0, textured=99.0, defocus=0.0
)
# All large leaves have random textures, which tiles of one colour leave plain.
ROUGH = dataclasses.replace(
  PLAIN, textured=6.0, gradient=0.0, waves=0.0, mixed=0.0, defocus=6.0
)


@functools.cache
def _drawer(settings):
  return quick_jit(functools.partial(images.images, count=4, settings=settings))


def _draw(key, tiles, settings=PLAIN):
  return np.asarray(_drawer(settings)(jax.random.key(key), tiles))


@functools.cache
def _plain(key):
  return _draw(key, _plain_tiles())


def _colours():
  return np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)


def _plain_tiles():
  """Of one colour each: their leaves have no random texture."""
  colours = _colours()[:, None, None]
  return jnp.asarray(np.broadcast_to(colours, (8, SIZE, SIZE, 3)))


def _tiles():
  """Of many colours, of which random textures are made."""
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8))


def _slope(x):
  """Exponent of the power spectrum of images [N, S, S, C], from 1/16 to 1/4."""
  found = figures.radial_spectrum(x)
  inside = (found.frequency > 1 / 16) & (found.frequency < 1 / 4)
  return np.polyfit(*(np.log(a[inside]) for a in found[:2]), 1)[0]


@pytest.mark.parametrize(
  "numbers, words",
  [
    ({"smallest": (3.0, 1.0)}, "smallest must be two ascending radii"),
    ({"smallest": 3.0}, "smallest must be two numbers, got 3.0"),
    ({"slopes": (1.0,)}, "slopes must be two numbers"),
    ({"leaves": 2.5}, "leaves must be whole, got 2.5"),
    ({"largest": 1.0}, "smallest must be .* and below largest"),
    ({"largest": np.nan}, "smallest must be .* and below largest"),
    ({"leaves": 0}, "leaves must be finite and at least 1, got 0"),
    ({"palette": 0}, "palette must be finite and at least 1, got 0"),
    ({"textured": -1.0}, "textured must be .* at least 0, got -1"),
    ({"waves": 1.5}, r"waves must lie in \[0, 1\], got 1.5"),
    ({"waves": 0.6, "mixed": 0.5}, "gradient, waves and mixed must add up to"),
    ({"slopes": (2.0, 1.0)}, "slopes must be two ascending exponents"),
    ({"periods": (0.0, 9.0)}, "periods must be two ascending lengths of at"),
    ({"warp": np.nan}, "warp must be .* at least 0, got nan"),
    ({"tilt": 0.5}, "tilt must be .* at least 1, got 0.5"),
    ({"middle": 1.0}, "middle must lie in .*, got 1.0"),
    ({"near": -0.1}, "near must lie in .*, got -0.1"),
    ({"defocus": -1.0}, "defocus must be .* at least 0, got -1"),
  ],
)
def test_numbers_of_leaves_that_make_no_image_are_refused(numbers, words):
  """They were taken without a word."""
  with refused(ValueError, words):
    LeafSettings(**numbers)


# --- whole images -------------------------------------------------------------


def test_images_follow_their_key():
  first, again, other = _plain(0), _draw(0, _plain_tiles()), _plain(1)
  assert first.shape == (4, SIZE, SIZE, 3) and first.dtype == np.uint8
  np.testing.assert_array_equal(first, again)
  assert (first != other).mean() > 0.5
  assert len({image.tobytes() for image in first}) == 4


def test_a_bank_is_drawn_in_parts(monkeypatch):
  def draw(key, tiles, *, count, settings):
    assert tiles == "tiles" and settings is PLAIN
    return jax.random.uniform(key, (count,))

  monkeypatch.setattr(images, "images", draw)
  bank = functools.partial(images.bank, jax.random.key(0), "tiles")
  found = bank(count=7, settings=PLAIN, at_once=3)
  assert found.shape == (7,) and len(set(found.tolist())) == 7
  first = bank(count=3, settings=PLAIN, at_once=3)
  np.testing.assert_array_equal(found[:3], first)


def test_images_have_the_spectrum_of_photographs():
  """Power falls as a power law of exponent 2 to 3 (Lee et al. 2001)."""
  drawn = np.concatenate([_plain(key) for key in range(2)])
  assert -3.2 < _slope(drawn / 127.5 - 1) < -2.2


def test_colours_are_those_of_the_tiles():
  """Without texture and blur a pixel is a colour or a mix at an edge."""
  drawn = _plain(1).astype(int)
  gap = np.abs(drawn[..., None, :] - _colours()).max(-1)
  assert (gap.min(-1) <= 1).mean() > 0.5
  assert gap.min(-1).max() > 1
  # Of four tiles that are neighbours, for every image.
  for near in (gap <= 1).mean((1, 2)) > 0.02:
    assert np.ptp(np.flatnonzero(near)) <= 3


@pytest.mark.slow
def test_textures_and_blur_are_seen_in_the_image():
  plain = _draw(2, _tiles())
  rough = _draw(2, _tiles(), ROUGH)
  flat = [
    (np.diff(x.astype(int), axis=1) == 0).all(-1).mean() for x in (plain, rough)
  ]
  assert flat[0] > 0.3 and flat[1] < 0.5 * flat[0]
  # The same leaves: out of focus they differ less from place to place.
  sharp, soft = (
    np.abs(np.diff(x / 127.5, axis=1)).mean((1, 2, 3))
    for x in (_plain(0), _draw(0, _plain_tiles(), ROUGH))
  )
  assert (soft < sharp + 1e-3).all() and soft.min() < 0.8 * sharp.max()


# --- geometry -----------------------------------------------------------------


def test_radii_have_their_law():
  """Moments of r^-3 (S + 2 R r)^2, summed on a fine grid in float64."""
  least, most, size = 2.0, 50.0, 30
  draw = quick_jit(shapes.radii, static_argnums=(1, 2, 4))
  found = draw(jax.random.key(0), 40000, size, jnp.float32(least), most)
  r = np.geomspace(least, most, 20001)
  density = r**-3 * (size + 2 * shapes.reach() * r) ** 2 * r  # over log r
  mean = (density * np.log(r)).sum() / density.sum()
  spread = (density * (np.log(r) - mean) ** 2).sum() / density.sum()
  log = np.log(np.asarray(found, np.float64))
  assert log.min() >= np.log(least) - 1e-5 and log.max() <= np.log(most) + 1e-5
  assert abs(log.mean() - mean) < 4 * (spread / 40000) ** 0.5
  assert abs(log.var() / spread - 1) < 0.05


# Of leaves of every kind: half of the seeds have jagged ones alone.
SEED = 6


def test_contours_are_not_convex_and_have_their_area():
  """What `seen` takes for inside has the area that is told."""
  leaves = quick_jit(shapes.draw, static_argnums=(1, 2, 4))(
    jax.random.key(SEED), 48, SIZE, jnp.float32(20.0), 20.5
  )
  one = jax.tree.map(lambda a: a[:, None], leaves)
  pose = leaves.pose._replace(centre=jnp.full((48, 2), SIZE / 2))
  one = one._replace(
    pose=jax.tree.map(lambda a: a[:, None], pose), hole=one.hole * 0
  )
  side = jnp.arange(-SIZE, 2.0 * SIZE) + 0.5
  place = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1)
  seen = quick_jit(
    jax.vmap(lambda leaf: shapes.seen(leaf, jnp.array([True]), place) == 0)
  )
  inside = np.asarray(seen(one))
  key = jax.random.split(jax.random.key(SEED), 6)[3]
  _, area, jagged = map(np.asarray, contours.draw(key, 48))
  ratio = inside.sum((1, 2)) / (area * np.asarray(leaves.pose.radius) ** 2)
  np.testing.assert_allclose(ratio, 1, atol=0.05)
  # Of a convex shape every middle of two places inside is inside.
  rng = np.random.default_rng(0)
  hollow = []
  for mask in inside:
    at = np.argwhere(mask)
    a, b = at[rng.integers(0, len(at), (2, 4000))]
    hollow.append(1 - mask[tuple(((a + b) // 2).T)].mean())
  assert 0 < jagged.sum() < 48
  assert np.array(hollow)[jagged].min() > 0.01
  assert np.array(hollow)[~jagged].max() < 0.005


def test_a_later_leaf_hides_an_earlier_one():
  """All lie about one place: the last that is there is seen."""
  draw = quick_jit(shapes.draw, static_argnums=(1, 2, 4))
  leaves = draw(jax.random.key(0), 11, 16, jnp.float32(30.0), 31.0)
  pose = leaves.pose._replace(centre=jnp.full((11, 2), 8.0))
  leaves = leaves._replace(pose=pose, hole=leaves.hole * 0)
  place = jnp.full((1, 1, 2), 8.25)
  for last in (0, 4, 7, 10):
    assert shapes.seen(leaves, jnp.arange(11) <= last, place) == last
  nowhere = jnp.full((1, 1, 2), 1e4)
  assert shapes.seen(leaves, jnp.arange(11) < 11, nowhere) == -1


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_planes_cover_their_share(share):
  side = (jnp.arange(24.0) + 0.5) * SIZE / 24
  place = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1)

  def covered(key):
    leaves = shapes.draw(key, 120, SIZE, jnp.float32(4.0), 32.0)
    return shapes.seen(leaves, shapes.covering(leaves, share), place) >= 0

  keys = jax.random.split(jax.random.key(0), 24)
  found = np.asarray(quick_jit(jax.vmap(covered))(keys)).mean((1, 2))
  assert abs(found.mean() - share) < 3.5 * found.std() / 24**0.5 + 0.03


# --- textures -----------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_random_textures_have_their_spectrum_and_their_colours(slope):
  tiles = jnp.asarray(_tiles(), jnp.float32)[:1] / 127.5 - 1
  tiles = tiles * jnp.array([1.0, 0.5, 0.1])
  draw = quick_jit(fields.draw, static_argnums=(2, 3, 4))
  found = draw(jax.random.key(0), tiles, 128, 1, (slope, slope))
  noise = np.asarray(found.noise, np.float64)
  np.testing.assert_allclose(noise.mean((1, 2)), 0, atol=1e-5)
  spread = np.asarray(tiles[0], np.float64).std((0, 1))
  np.testing.assert_allclose(noise.std((1, 2)) / spread, 1, atol=0.05)
  power = np.abs(np.fft.fft2(noise, axes=(1, 2))[:, 4:32, 0, 0]).mean(0)
  law = np.polyfit(np.log(np.arange(4, 32)), np.log(power), 1)[0]
  assert abs(law + slope) < 0.02
  warp = np.asarray(found.warp)
  np.testing.assert_allclose(warp.std((0, 1)), 1, atol=1e-4)
  assert np.abs(np.diff(warp, axis=0)).max() < 0.8  # smooth


def test_fields_are_read_between_their_samples():
  rng = np.random.default_rng(0)
  field = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  x, y = jnp.array([1.25, 7.5, -0.5]), jnp.array([2.0, 7.0, 3.5])
  found = fields.at(jnp.asarray(field), x, y, jnp.array([0, 1, 1]))
  wanted = [
    0.75 * field[0, 2, 1] + 0.25 * field[0, 2, 2],
    0.5 * (field[1, 7, 7] + field[1, 7, 0]),
    0.25 * (field[1, 3:5, 7] + field[1, 3:5, 0]).sum(0),
  ]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


_STRIPES = textures.Textures(
  colours=jnp.array([[-1.0] * 3, [1.0] * 3]),
  rough=jnp.zeros(2),
  field=jnp.zeros(2, jnp.int32),
  offset=jnp.zeros(2),
  ramp=jnp.float32(0),
  steep=jnp.float32(1),
  striped=jnp.float32(1),
  waves=jnp.eye(2) / 8,
  cut=jnp.ones(2),
  contrast=jnp.full(2, 1e-2),
  drift=jnp.float32(0),
  checks=jnp.float32(0),
  bend=jnp.float32(0),
  tilt=jnp.zeros(2),
)


@quick_jit
def _painted(look):
  """What a leaf shows about its centre, [64, 64, 3]."""
  pose = shapes.Pose(jnp.zeros(2), jnp.float32(32.0), jnp.eye(2))
  side = jnp.arange(-32.0, 32.0)
  place = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), -1)
  wave = jnp.sin(2 * np.pi * jnp.arange(64.0) / 64)
  warp = jnp.broadcast_to(wave[:, None, None], (64, 64, 2))
  noise = jnp.full((2, 64, 64, 3), 0.5)
  here = jax.tree.map(
    lambda a: jnp.broadcast_to(a, (64, 64, *a.shape)), (look, pose)
  )
  return textures.paint(*here, place, fields.Fields(noise, warp), 1)


def _striped(**changes):
  look = _STRIPES._replace(**changes)
  return np.asarray(_painted(look), np.float64)[..., 0]


def test_stripes_are_sines_bent_cut_checked_and_tilted():
  x = np.arange(-32.0, 32.0)
  plain = _striped()
  wave = np.sin(2 * np.pi * x / 8)
  np.testing.assert_allclose(plain, np.tile(wave, (64, 1)), atol=1e-4)
  checked = _striped(checks=jnp.float32(1))
  product = 2 * np.outer(0.5 + wave / 2, 0.5 + wave / 2) - 1
  np.testing.assert_allclose(checked, product, atol=1e-3)
  cut = _striped(cut=jnp.full(2, 0.6))
  np.testing.assert_allclose(cut, np.where(plain > 0.2, 1, plain), atol=1e-3)
  # c = 1/3 at the leaf's radius: 1 / (1 - c) and 1 / (1 + c) are 2 apart.
  tilted = _striped(tilt=jnp.array([1 / 3, 0.0]))
  seen = np.sin(2 * np.pi / 8 * x / (1 - x / 96))
  np.testing.assert_allclose(tilted, np.tile(seen, (64, 1)), atol=1e-3)
  bent = _striped(bend=jnp.float32(2))
  moved = x + 2 * np.sin(2 * np.pi * x / 64)[:, None]
  np.testing.assert_allclose(bent, np.sin(2 * np.pi * moved / 8), atol=1e-3)
  drifted = _striped(drift=jnp.float32(2))
  seen = np.sin(2 * np.pi * x / 8 + 2 * np.sin(x / 8))
  np.testing.assert_allclose(drifted, np.tile(seen, (64, 1)), atol=1e-3)


def test_gradients_and_random_textures():
  x = np.arange(-32.0, 32.0)
  ramp = _striped(striped=jnp.float32(0), ramp=jnp.float32(1))
  seen = 2 / (1 + np.exp(-x / 32)) - 1
  np.testing.assert_allclose(ramp, np.tile(seen, (64, 1)), atol=1e-5)
  rough = _striped(striped=jnp.float32(0), rough=jnp.array([1.0, 0.0]))
  np.testing.assert_allclose(rough, -0.5, atol=1e-6)


def test_textures_have_their_shares():
  """Small leaves are plain; of the others each kind has its share."""
  settings = LeafSettings(gradient=0.1, waves=0.2, mixed=0.3, textured=10.0)
  radius = jnp.repeat(jnp.array([9.9, 10.1]), 4000)
  draw = quick_jit(textures.draw, static_argnums=3)
  tiles = jnp.asarray(_tiles(), jnp.float32)
  look = draw(jax.random.key(0), radius, tiles, settings)
  small, large = (
    jax.tree.map(operator.itemgetter(part), look)
    for part in np.s_[:4000, 4000:]
  )
  for name in ("rough", "ramp", "striped", "tilt"):
    assert not np.any(getattr(small, name))
  rough = np.asarray(large.rough).any(-1)
  striped = np.asarray(large.striped) > 0
  found = [large.ramp.mean(), (striped & ~rough).mean()]
  found += [(striped & rough).mean(), (~striped & rough).mean()]
  # One mixture in a hundred has two plain sides.
  np.testing.assert_allclose(found, [0.1, 0.203, 0.297, 0.4], atol=0.03)
  tilts = np.hypot(*np.asarray(large.tilt).T)
  assert abs((tilts > 0).mean() - 0.5) < 0.03
  c = tilts.max() * shapes.reach()
  assert (1 + c) / (1 - c) == pytest.approx(settings.tilt, abs=1e-3)


# --- depth --------------------------------------------------------------------


def test_a_disc_blurs_by_its_mean():
  x = np.random.default_rng(0).normal(size=(20, 24, 2)).astype(np.float32)
  blur = quick_jit(planes.blurred, static_argnums=2)
  np.testing.assert_allclose(blur(x, jnp.float32(0.0), 5.0), x, atol=1e-5)
  found = blur(x, jnp.float32(3.0), 5.0)
  offset = np.arange(-4, 5)
  weight = np.clip(3.5 - np.hypot(offset[:, None], offset), 0, 1)
  wide = np.pad(x.astype(float), ((4, 4), (4, 4), (0, 0)), mode="edge")
  windows = np.lib.stride_tricks.sliding_window_view(wide, (9, 9), (0, 1))
  wanted = (windows * weight).sum((-1, -2)) / weight.sum()
  np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_middle_plane_alone_is_in_focus():
  """A bar in each plane: its edge is as wide as its plane is blurred."""
  size = 48

  def plane(first, last, value):
    cover = jnp.zeros((size, size, 1)).at[:, first:last].set(1)
    return Plane(value * cover * jnp.ones(3), cover)

  far = Plane(*(jnp.ones((size, size, c)) for c in (3, 1)))
  far = far._replace(colours=far.colours.at[:, :8].set(0))
  middle, near = plane(20, 40, -1.0), plane(32, 48, 0.5)
  row = np.asarray(
    planes.composed(far, middle, near, jnp.float32(3.0), 5.0)[24, :, 0]
  )
  assert row[19] == pytest.approx(1, abs=1e-5)
  assert row[20] == pytest.approx(-1, abs=1e-5)
  soft = (row > 0.01) & (row < 0.99)
  assert 4 <= soft[:20].sum() <= 8  # of the far bar
  # Half way through its blurred edge, the near bar lets the middle one through.
  assert np.all(np.diff(row[26:40]) > -1e-5)
  assert -0.9 < row[31] < 0.4
  assert row[-1] == pytest.approx(0.5, abs=1e-5)
  sharp = np.asarray(
    planes.composed(far, middle, near, jnp.float32(0.0), 5.0)[24, :, 0]
  )
  wanted = np.repeat([0, 1, -1, 0.5], [8, 12, 12, 16])
  np.testing.assert_allclose(sharp, wanted, atol=1e-5)
