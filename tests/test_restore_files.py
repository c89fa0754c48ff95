"""Pictures, kernels and masks as people have them, and what is said of them."""

import io
import zlib

import jax
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from experiments.restore.measurement import noise
from experiments.restore.measurement.degradation import degradation
from experiments.restore.measurement.observed import observe
from experiments.restore.picture_files import kernel_file, picture_file
from experiments.restore.picture_files.mask import (
  about_mask,
  mask_of,
  read_mask,
)
from experiments.restore.picture_files.picture import read_picture
from tests.oracles import refused

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (36, 40, 3)).astype(np.uint16)
KERNEL = np.zeros((5, 7))
KERNEL[2, 1:6] = [1, 4, 2, 9, 3]
KERNEL[3, 5] = 5
WHOLE = np.pad(KERNEL, ((1, 1), (0, 0))) / KERNEL.sum()  # square


def _save(pixels, file, **options):
  PIL.Image.fromarray(pixels).save(file, **options)
  return str(file)


# --- depth --------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_written_is_read_again(tmp_path, bits, channels):
  """Every level of every channel, and the profile of the colours."""
  profile = PIL.ImageCms.ImageCmsProfile(
    PIL.ImageCms.createProfile("sRGB")
  ).tobytes()
  levels = DEEP[..., :channels] >> (16 - bits)
  image = levels / (2**bits - 1) * 2 - 1
  written = picture_file.as_png(image, bits=bits, profile=profile)
  (tmp_path / "a.png").write_bytes(written)
  found = picture_file.read("image", str(tmp_path / "a.png"))
  np.testing.assert_allclose(found.values, (image + 1) / 2, atol=1e-9)
  assert found.bits == bits and found.profile == profile
  assert found.alpha is None
  with PIL.Image.open(io.BytesIO(written)) as picture:
    picture.load()  # another reader takes it too, checksums and all
    assert picture.size == (40, 36)


@pytest.mark.parametrize(
  "options",
  [{}, {"byteorder": ">"}, {"compression": "zlib"}],
  ids=("plain", "big-endian", "compressed"),
)
def test_colour_tiff_of_16_bits_keeps_its_low_bytes(tmp_path, options):
  """Pillow has no mode for it and keeps the high ones (#2574)."""
  file = tmp_path / "a.tif"
  tifffile.imwrite(file, DEEP, photometric="rgb", **options)
  found = picture_file.read("image", str(file))
  np.testing.assert_allclose(found.values, DEEP / 65535, atol=1e-9)


def test_transparent_png_of_16_bits(tmp_path):
  """Colour keeps its low bytes; alpha is told apart (Pillow reduces both)."""
  alpha = np.full((36, 40, 1), 65535, np.uint16)
  alpha[:5] = 0
  levels = np.concatenate([DEEP, alpha], -1).astype(">u2")
  rows = np.frombuffer(levels.tobytes(), np.uint8).reshape(36, -1)
  lines = np.concatenate([np.zeros((36, 1), np.uint8), rows], 1)
  written = picture_file.as_png(DEEP / 32767.5 - 1, bits=16)
  head = bytearray(written[:33])
  head[25] = 6  # colour type: with alpha
  head[29:33] = zlib.crc32(bytes(head[12:29])).to_bytes(4, "big")
  body = zlib.compress(lines.tobytes())
  data = len(body).to_bytes(4, "big") + b"IDAT" + body
  data += zlib.crc32(b"IDAT" + body).to_bytes(4, "big")
  (tmp_path / "a.png").write_bytes(bytes(head) + data + written[-12:])
  found = picture_file.read("image", str(tmp_path / "a.png"))
  np.testing.assert_allclose(found.values, DEEP / 65535, atol=1e-9)
  assert found.alpha[:5].max() == 0 and found.alpha[5:].min() == 1


def test_floating_point_pixels_say_how_they_are_taken(tmp_path):
  values = RNG.uniform(-1, 1, (36, 40)).astype(np.float32)
  np.save(tmp_path / "a.npy", values)
  np.save(tmp_path / "b.npy", (values + 1) / 2)
  np.save(tmp_path / "c.npy", (values + 1) * 127.5)
  np.save(tmp_path / "d.npy", (DEEP[..., 0]))
  tifffile.imwrite(tmp_path / "e.tif", (values + 1) / 2)
  for name in ("a.npy", "b.npy", "e.tif"):
    found = read_picture(str(tmp_path / name))
    np.testing.assert_allclose(found.pixels[..., 0], values, atol=1e-6)
    assert found.bits == 32
    assert ("taken to lie in [0, 1]" in found.said) == (name != "a.npy")
  with refused(ValueError, "image .* must hold pixels in .* they reach 25"):
    read_picture(str(tmp_path / "c.npy"))
  found = read_picture(str(tmp_path / "d.npy"))
  np.testing.assert_allclose(
    found.pixels[..., 0], DEEP[..., 0] / 32767.5 - 1, atol=1e-6
  )


def test_files_that_are_not_read_are_named(tmp_path):
  (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
  with refused(ValueError, "is HEIC, which is not read: convert it to PNG"):
    picture_file.read("image", str(tmp_path / "a.heic"))
  for name in ("a.png", "a.jpg"):
    _save((DEEP >> 8).astype(np.uint8), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with refused(ValueError, "is truncated: it ends before its picture does"):
      picture_file.read("image", str(tmp_path / name))
  np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
  with refused(ValueError, r"must hold \[H, W\], .* float64 \[2, 3, 4\]"):
    picture_file.read("image", str(tmp_path / "a.npy"))


# --- kernels ------------------------------------------------------------------


@pytest.mark.parametrize(
  "kind", ["8 bits", "16 bits", "floats", "npy", "alpha", "black", "turned"]
)
def test_every_kind_of_kernel_is_the_same_kernel(tmp_path, kind):
  """16-bit and floating-point ones were clipped at 255, alpha was ignored."""
  file = tmp_path / (
    "k.npy" if kind == "npy" else "k.tif" if kind == "floats" else "k.png"
  )
  small = (KERNEL * 20).astype(np.uint8)
  if kind == "8 bits":
    _save(small, file)
  elif kind == "16 bits":
    _save((KERNEL * 7000).astype(np.uint16), file)
  elif kind == "floats":
    tifffile.imwrite(file, (KERNEL / 24).astype(np.float32))
  elif kind == "npy":
    np.save(file, KERNEL * 1000)
  elif kind in ("alpha", "black"):  # strokes of one colour on nothing
    colour = np.full((5, 7, 3), 255 if kind == "alpha" else 0, np.uint8)
    _save(np.concatenate([colour, small[..., None]], -1), file)
  else:  # a phone held upright: EXIF 6 turns it to the right
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    _save(np.ascontiguousarray(np.rot90(small)), file, exif=exif)
  found = kernel_file.read(str(file))
  np.testing.assert_allclose(
    found, WHOLE, atol=2e-4 if kind == "floats" else 1e-9
  )


def test_kernels_can_be_flipped_and_lose_their_zeros(tmp_path):
  np.save(tmp_path / "k.npy", KERNEL)
  found = kernel_file.read(str(tmp_path / "k.npy"), flip=True)
  np.testing.assert_allclose(found, WHOLE[::-1, ::-1])
  trimmed = kernel_file.trimmed(np.pad(WHOLE, 4))
  np.testing.assert_allclose(trimmed, WHOLE[1:-1, 1:-1])  # 5 x 5 holds it all


# --- masks --------------------------------------------------------------------


def _with_hole(tmp_path):
  """A picture whose hole is transparent, and that hole."""
  pixels = (DEEP >> 8).astype(np.uint8)
  alpha = np.full((36, 40, 1), 255, np.uint8)
  alpha[10:20, 5:15] = 0
  file = _save(np.concatenate([pixels, alpha], -1), tmp_path / "hole.png")
  return read_picture(file), alpha[..., 0] > 0


def test_a_hole_drawn_as_transparency_is_a_hole(tmp_path):
  picture, observed = _with_hole(tmp_path)
  np.testing.assert_array_equal(mask_of(picture, ""), observed)
  mask = np.full((36, 40), 255, np.uint8)
  mask[:3] = 0
  file = _save(mask, tmp_path / "m.png")
  both = observed & (mask > 0)
  np.testing.assert_array_equal(mask_of(picture, file), both)
  plain = picture._replace(hidden=None)
  np.testing.assert_array_equal(mask_of(plain, file), mask > 0)
  with refused(ValueError, "mask must name a file, or the image have"):
    mask_of(plain, "")


def test_transparent_parts_of_a_mask_hide(tmp_path):
  _, observed = _with_hole(tmp_path)
  white = np.full((36, 40, 4), 255, np.uint8)
  white[..., 3] = 255 * observed
  found = read_mask(_save(white, tmp_path / "m.png"), (36, 40))
  np.testing.assert_array_equal(found, observed)


def test_cameras_turn_masks(tmp_path):
  mask = np.full((40, 36), 255, np.uint8)
  mask[0] = 0
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  file = _save(mask, tmp_path / "m.png", exif=exif)
  found = read_mask(file, (36, 40))
  assert found[:, -1].max() == 0 and found[:, :-1].min() == 1


@pytest.mark.parametrize(
  ("rows", "words"),
  [(0, "hides next to nothing"), (9, None), (36, "hides nearly all")],
)
def test_the_share_observed_is_said_and_questioned(rows, words):
  mask = np.ones((36, 40), np.float32)
  mask[:rows] = 0
  pixels = RNG.uniform(-1, 1, (36, 40, 3))
  first, *others = about_mask(mask, pixels)
  assert first == f"observed: {100 * (1 - rows / 36):.1f} % of the picture"
  assert bool(others) == (words is not None)
  assert words is None or words in others[0]


def test_an_inverted_mask_is_seen_where_the_hole_is_filled():
  mask = np.ones((36, 40), np.float32)
  mask[5:25, 5:25] = 0
  pixels = RNG.uniform(-1, 1, (36, 40, 3)) * mask[..., None]
  assert len(about_mask(mask, pixels)) == 1
  _, warning = about_mask(1 - mask, pixels)
  assert warning.startswith("the mask looks inverted")


# --- noise --------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_noise_is_estimated_within_a_tenth(level):
  """On a smooth scene, as a blur leaves it, and beside a hole."""
  y, x = np.mgrid[:96, :120] / 30
  scene = np.stack([np.sin(x * y), np.cos(x + y**2), x - y], -1)
  noisy = scene + level * RNG.standard_normal(scene.shape)
  assert abs(noise.estimate(noisy) / level - 1) < 0.1
  observed = np.ones(scene.shape[:2])
  observed[20:50, 20:50] = 0
  noisy[20:50, 20:50] = 5 * RNG.standard_normal((30, 30, 3))
  assert abs(noise.estimate(noisy, observed) / level - 1) < 0.1


def test_noise_of_scattered_pixels_is_asked_for():
  observed = RNG.uniform(size=(96, 96)) < 0.3
  with refused(ValueError, "noise_std must be given: only 0 patches of 8 x 8"):
    noise.estimate(np.zeros((96, 96, 3)), observed)


def test_rounding_is_uniform():
  x = RNG.uniform(-1, 1, 100_000)
  for bits in (8, 16):
    white = 2**bits - 1
    error = np.round((x + 1) / 2 * white) / white * 2 - 1 - x
    assert abs(error.std() / noise.rounding(bits) - 1) < 0.01


def test_a_scene_is_larger_than_its_picture():
  """The margin of a clean picture is cut off, that of a given one added."""
  picture = RNG.uniform(-1, 1, (60, 70, 3)).astype(np.float32)
  how = degradation("motion_blur", kernel=np.pad(WHOLE, 2))
  assert how.margin == 2
  given = observe(
    picture,
    how.build,
    enlarge=1,
    noise_std=0.1,
    degrade=False,
    seed=0,
    margin=2,
  )
  assert given.observation.operator.image_shape == (64, 74, 3)
  given = observe(
    picture, how.build, enlarge=1, noise_std=0.1, degrade=True, seed=0, margin=2
  )
  np.testing.assert_array_equal(given.truth[0], picture[2:-2, 2:-2])
  assert given.observation.y.shape == given.truth.shape
  # What is solved for has sides whose FFTs are fast, around the same picture.
  fast = given.on_fast_sides()
  operator = fast.observation.operator
  assert operator.image_shape == (64, 72, 3)
  assert operator.measurement_shape == (56, 66, 3)
  assert fast.observation.y is given.observation.y


def test_factors_of_super_resolution():
  for factor in (2, 3, 4):
    how = degradation("super_resolution", factor=factor)
    given = observe(
      np.zeros((32, 34, 3), np.float32),
      how.build,
      enlarge=how.enlarge,
      noise_std=0.1,
      degrade=False,
      seed=0,
      margin=how.margin,
    )
    operator = given.observation.operator
    inside = jax.eval_shape(
      operator.interior, np.zeros(operator.image_shape, np.float32)
    )
    assert inside.shape == (32 * factor, 34 * factor, 3)
