"""Arrays, counts and masks that an outsider brought."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from experiments.data import photographs
from experiments.restore.picture_files import picture_file
from experiments.restore.picture_files.mask import (
  about_mask,
  read_mask,
  soft_share,
)
from experiments.restore.picture_files.picture import read_picture
from tests.oracles import refused

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (36, 40, 2)).astype(np.uint16)


# --- arrays -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint32])
def test_counts_without_a_white_are_refused(tmp_path, dtype):
  np.save(tmp_path / "a.npy", RNG.integers(0, 255, (36, 40)).astype(dtype))
  with refused(ValueError, "must hold uint8, uint16 or floating-point numbers"):
    read_picture(str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
  "values", [np.zeros((0, 5)), np.zeros((4, 4), complex), np.array(["a"])]
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, values):
  np.save(tmp_path / "a.npy", values)
  with refused(ValueError, r"image .*a.npy' (must hold|cannot be read)"):
    read_picture(str(tmp_path / "a.npy"))


def test_an_empty_file_is_no_array(tmp_path):
  (tmp_path / "zero.npy").touch()
  words = r"zero.npy' cannot be read as .npy \(it is no .npy file\)"
  with refused(ValueError, words):
    read_picture(str(tmp_path / "zero.npy"))


def test_counts_of_fewer_bits_are_said(tmp_path):
  np.save(tmp_path / "a.npy", DEEP[..., 0] >> 4)
  found = read_picture(str(tmp_path / "a.npy"))
  assert "is 6.2 % of white: counts of fewer bits" in found.said
  tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0].astype(np.int32) * 2)
  with refused(ValueError, "holds numbers from .* more than 16 bits"):
    read_picture(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
def test_tiff_of_counts_without_a_white_is_refused(tmp_path, dtype):
  values = (DEEP[..., 0] >> 9).astype(dtype)
  tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
  with refused(ValueError, r"give uint8, uint16 or floats in \[0, 1\]\)$"):
    read_picture(str(tmp_path / "a.tif"))


def test_a_cameras_14_bits_in_16_are_said(tmp_path):
  np.save(tmp_path / "a.npy", DEEP[..., 0] >> 2)
  assert "is 25 % of white" in read_picture(str(tmp_path / "a.npy")).said
  np.save(tmp_path / "a.npy", DEEP[..., 0] >> 1)
  assert read_picture(str(tmp_path / "a.npy")).said == ""


def test_what_is_read_is_said(tmp_path):
  for name in ("a.gif", "b.txt", "c.png"):
    (tmp_path / name).write_bytes(b"GIF89a no picture")
    with refused(ValueError, "cannot be read as a picture: PNG, JPEG, WebP"):
      picture_file.read("image", str(tmp_path / name))


def test_a_short_webp_is_named(tmp_path):
  pixels = RNG.integers(0, 255, (36, 40, 3), np.uint8)
  PIL.Image.fromarray(pixels).save(tmp_path / "a.webp")
  written = (tmp_path / "a.webp").read_bytes()
  (tmp_path / "a.webp").write_bytes(written[: len(written) // 2])
  with refused(ValueError, "a.webp' is truncated or damaged"):
    picture_file.read("image", str(tmp_path / "a.webp"))


def test_a_damaged_file_is_not_called_short(tmp_path):
  written = bytearray(photographs.as_png(RNG.uniform(-1, 1, (36, 40, 3))))
  written[len(written) // 2] ^= 0xFF
  (tmp_path / "a.png").write_bytes(written)
  with refused(ValueError, "a.png' (is damaged|cannot be read)"):
    picture_file.read("image", str(tmp_path / "a.png"))


# --- masks --------------------------------------------------------------------


def test_masks_of_0_and_1(tmp_path):
  mask = np.ones((36, 40), np.uint8)
  mask[5:9] = 0
  PIL.Image.fromarray(mask).save(tmp_path / "a.png")
  np.save(tmp_path / "b.npy", mask)
  np.save(tmp_path / "c.npy", mask.astype(np.int64))
  for name in ("a.png", "b.npy", "c.npy"):
    found = read_mask(str(tmp_path / name), (36, 40))
    np.testing.assert_array_equal(found, mask)
  holes = mask.astype(np.float32)
  holes[0, 0] = np.nan
  np.save(tmp_path / "d.npy", holes)
  with refused(ValueError, "mask .*d.npy' must be finite everywhere"):
    read_mask(str(tmp_path / "d.npy"), (36, 40))


def test_the_grey_of_a_mask_is_counted(tmp_path):
  mask = np.full((36, 40), 255, np.uint8)
  mask[:9] = 0
  mask[9:12] = 128
  PIL.Image.fromarray(mask).save(tmp_path / "a.png")
  assert soft_share(str(tmp_path / "a.png")) == 3 / 36
  clear = np.full((36, 40, 4), 255, np.uint8)
  clear[..., 3] = mask
  PIL.Image.fromarray(clear).save(tmp_path / "b.png")
  assert soft_share(str(tmp_path / "b.png")) == 3 / 36


@pytest.mark.parametrize("quality", [75, 95])
def test_an_inverted_mask_of_a_jpeg_is_questioned(quality):
  """A hole's edge rings, and the mask is a pixel off."""
  picture = photographs.load("coffee", 96)
  picture[30:62, 20:70] = 1
  pixels = np.clip(np.round((picture + 1) * 127.5), 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
  seen = np.asarray(PIL.Image.open(buffer)).astype(np.float32) / 127.5 - 1
  mask = np.ones((96, 96), np.float32)
  mask[29:62, 20:70] = 0
  assert len(about_mask(mask, seen)) == 1
  _, warning = about_mask(1 - mask, seen)
  assert warning.startswith("the mask looks inverted")


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize(
  ("name", "fill", "every"),
  [("moon", 1, 96), ("coffee", 1, 12), ("chelsea", (1, -1, -1), 96)],
  ids=("even picture", "strokes", "red"),
)
def test_an_inverted_mask_is_questioned_whatever_it_hides(
  name, fill, every, quality
):
  """On a picture of little contrast, of thin strokes, in a colour."""
  mask = np.ones((96, 96), np.float32)
  width = 4 if every < 96 else 32
  for row in range(20, 80, every):
    mask[row : row + width, 10:80] = 0
  picture = np.where(mask[..., None] > 0, photographs.load(name, 96), fill)
  pixels = np.clip(np.round((picture + 1) * 127.5), 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
  seen = np.asarray(PIL.Image.open(buffer)).astype(np.float32) / 127.5 - 1
  assert len(about_mask(mask, seen)) == 1
  _, warning = about_mask(1 - mask, seen)
  assert warning.startswith("the mask looks inverted")
