"""Files that an outsider brought: what is read, said of them, or refused."""

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from configs import restore as config
from experiments.harness import command_line
from experiments.restore import job
from experiments.restore.picture_files import picture_file
from experiments.restore.picture_files.picture import read_picture
from tests.oracles import refused

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (36, 40, 2)).astype(np.uint16)


def _png(levels, colour_type, extra=b"", *, depth=16, width=None):
  """The bytes of a PNG that Pillow does not write, of rows in 16 bits."""
  height, width = levels.shape[0], width or levels.shape[1]
  written = picture_file.as_png(np.zeros((height, width, 1)), bits=16)
  head = bytearray(written[8:33])
  head[8:12] = width.to_bytes(4, "big")
  head[16:18] = depth, colour_type
  rows = np.frombuffer(levels.astype(">u2").tobytes(), np.uint8)
  lines = np.pad(rows.reshape(height, -1), ((0, 0), (1, 0)))
  body = picture_file.zlib.compress(lines.tobytes())
  chunks = [(b"IHDR", bytes(head[8:21]))]
  chunks += [(b"tRNS", extra)] if extra else []
  chunks += [(b"IDAT", body), (b"IEND", b"")]
  pack, crc = picture_file.struct.pack, picture_file.zlib.crc32
  return written[:8] + b"".join(
    pack(">I", len(data)) + kind + data + pack(">I", crc(kind + data))
    for kind, data in chunks
  )


# --- depth and transparency ---------------------------------------------------


def test_grey_of_16_bits_with_alpha(tmp_path):
  """Pillow reads eight of its bits, and takes it for colour."""
  (tmp_path / "a.png").write_bytes(_png(DEEP, 4))
  found = picture_file.read("image", str(tmp_path / "a.png"))
  assert found.bits == 16
  np.testing.assert_allclose(found.values, DEEP[..., :1] / 65535, atol=1e-9)
  np.testing.assert_allclose(found.alpha, DEEP[..., 1] / 65535, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_colour_of_16_bits_is_transparent(tmp_path, channels):
  levels = RNG.integers(0, 2**16, (36, 40, channels)).astype(np.uint16)
  key = np.array([1234, 513, 770][:channels], np.uint16)
  levels[:5] = key
  levels[5] = key + 1  # the same high bytes
  kind = {1: 0, 3: 2}[channels]
  (tmp_path / "a.png").write_bytes(
    _png(levels, kind, key.astype(">u2").tobytes())
  )
  found = picture_file.read("image", str(tmp_path / "a.png"))
  np.testing.assert_allclose(found.values, levels / 65535, atol=1e-9)
  assert found.alpha[:5].max() == 0 and found.alpha[5:].min() == 1


def test_opaque_pictures_have_no_transparency(tmp_path):
  pixels = RNG.integers(0, 255, (36, 40, 4)).astype(np.uint8)
  pixels[..., 3] = 255
  PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
  found = read_picture(str(tmp_path / "a.png"))
  assert found.hidden is None and found.said == ""


def test_scanners_may_call_0_white(tmp_path):
  for name, kind in (("a", "miniswhite"), ("b", "minisblack")):
    tifffile.imwrite(tmp_path / f"{name}.tif", DEEP[..., 0], photometric=kind)
  white, black = (
    picture_file.read("image", str(tmp_path / f"{name}.tif")).values
    for name in "ab"
  )
  np.testing.assert_allclose(white, 1 - black, atol=1e-9)


def test_printing_colours_become_srgb(tmp_path):
  """A profile of inks does not describe the colours that are written."""
  inks = PIL.Image.fromarray(
    RNG.integers(0, 255, (36, 40, 4), np.uint8), "CMYK"
  )
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  profile = b"no profile of inks"
  inks.save(tmp_path / "a.jpg", exif=exif, icc_profile=profile)
  found = read_picture(str(tmp_path / "a.jpg"))
  assert found.pixels.shape == (40, 36, 3)
  assert found.profile != profile
  assert "printing colours are converted to sRGB" in found.said
  assert "nearly: there is no profile of them" in found.said


def test_the_first_of_several_frames_is_said(tmp_path):
  first, *others = (
    PIL.Image.fromarray(RNG.integers(0, 255, (36, 40, 3), np.uint8))
    for _ in range(3)
  )
  first.save(tmp_path / "a.tif", save_all=True, append_images=others)
  found = read_picture(str(tmp_path / "a.tif"))
  assert "of 3 frames the first is taken" in found.said


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_fourth_channel_that_means_nothing_keeps_16_bits(
  tmp_path, compression
):
  levels = np.concatenate([DEEP, DEEP[::-1]], -1)
  tifffile.imwrite(
    tmp_path / "a.tif",
    levels,
    photometric="rgb",
    extrasamples=["unspecified"],
    compression=compression,
  )
  found = picture_file.read("image", str(tmp_path / "a.tif"))
  assert found.bits == 16 and found.alpha is None
  np.testing.assert_allclose(found.values, levels[..., :3] / 65535, atol=1e-9)


def test_bits_that_are_not_read_are_said(tmp_path):
  """Of premultiplied colours and of inks, Pillow gives eight alone."""
  levels = np.concatenate([DEEP, DEEP | 0x8000], -1)
  kinds = {"photometric": "rgb", "extrasamples": ["assocalpha"]}
  for options in (kinds, {"photometric": "separated"}):
    tifffile.imwrite(tmp_path / "a.tif", levels, **options)
    found = read_picture(str(tmp_path / "a.tif"))
    assert found.bits == 8 and "of its 16 bits 8 are read" in found.said


def test_planes_of_16_bits_are_refused(tmp_path):
  """Pillow mixes them up; of 8 bits it reads them."""
  planes = np.moveaxis(np.concatenate([DEEP, DEEP[::-1, :, :1]], -1), -1, 0)
  planes = np.ascontiguousarray(planes)
  form = {"photometric": "rgb", "planarconfig": "separate"}
  for compression in (None, "zlib"):
    tifffile.imwrite(
      tmp_path / "a.tif", planes, compression=compression, **form
    )
    with refused(ValueError, r"16 bits per channel in planes; store its .*\)$"):
      picture_file.read("image", str(tmp_path / "a.tif"))
  shallow = (planes >> 8).astype(np.uint8)
  tifffile.imwrite(tmp_path / "b.tif", shallow, **form)
  found = picture_file.read("image", str(tmp_path / "b.tif"))
  np.testing.assert_allclose(found.values, np.moveaxis(shallow, 0, -1) / 255)


@pytest.mark.parametrize("depth", [2, 4])
def test_one_grey_of_few_bits_is_transparent(tmp_path, depth):
  levels = RNG.integers(0, 2**depth, (36, 40))
  bits = (levels[..., None] >> np.arange(depth)[::-1]) & 1
  rows = np.packbits(bits.reshape(36, -1).astype(np.uint8), 1)
  written = _png(rows.view(">u2"), 0, b"\0\2", depth=depth, width=40)
  (tmp_path / "a.png").write_bytes(written)
  found = picture_file.read("image", str(tmp_path / "a.png"))
  np.testing.assert_array_equal(found.alpha == 0, levels == 2)
  np.testing.assert_allclose(found.values[..., 0], levels / (2**depth - 1))


def test_12_bits_have_a_white_of_their_own(tmp_path):
  levels = DEEP[..., 0].astype(np.uint32) >> 4
  pairs = levels[:, ::2] << 12 | levels[:, 1::2]
  packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], -1)
  file = tmp_path / "a.tif"
  packed = packed.reshape(36, 60).astype(np.uint8)
  tifffile.imwrite(file, packed, photometric="minisblack")
  with tifffile.TiffFile(file, mode="r+") as picture:
    tags = picture.pages[0].tags
    tags["BitsPerSample"].overwrite(12)
    tags["ImageWidth"].overwrite(40)
  found = picture_file.read("image", str(file))
  np.testing.assert_allclose(found.values[..., 0], levels / 4095, atol=1e-9)


def test_a_raw_file_is_not_its_preview(tmp_path):
  """The first picture in it is a small one, whatever the file is called."""
  for name, tag in (("a.tif", []), ("b.tif", [(50706, 1, 4, b"\1\4\0\0")])):
    with tifffile.TiffWriter(tmp_path / name) as file:
      preview = np.zeros((9, 10, 3), np.uint8)
      file.write(
        preview,
        photometric="rgb",
        subfiletype=0 if tag else 1,
        subifds=1,
        extratags=tag,
      )
      file.write(DEEP[..., 0], photometric="minisblack")
    with refused(ValueError, "it holds a preview, as raw files do; develop"):
      picture_file.read("image", str(tmp_path / name))
  (tmp_path / "c.dng").write_bytes((tmp_path / "a.tif").read_bytes())
  with refused(ValueError, "c.dng' is a raw file, which is not read"):
    picture_file.read("image", str(tmp_path / "c.dng"))


def _profile(space, **tags):
  """The bytes of an ICC profile of colours that Pillow makes none of."""
  made = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
  head = bytearray(made.tobytes()[:128])
  head[12:16], head[16:20], head[20:24] = b"prtr", space, b"Lab "
  pack = picture_file.struct.pack
  at = 132 + 12 * len(tags)
  table, body = pack(">I", len(tags)), b""
  for name, data in tags.items():
    table += name.encode() + pack(">II", at + len(body), len(data))
    body += data
  head[:4] = pack(">I", at + len(body))
  return bytes(head) + table + body


def test_printing_colours_follow_their_profile(tmp_path):
  """Here one whose cyan, magenta and yellow are invisible."""
  ramp = bytes(range(256))
  black = np.arange(16) % 2  # the last of four inks, with two values each
  lab = np.full((16, 3), 128, np.uint8)
  lab[:, 0] = np.where(black, 0, 255)
  table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
  table += picture_file.struct.pack(
    ">9i", *(np.eye(3, dtype=int).ravel() << 16)
  )
  table += 4 * ramp + lab.tobytes() + 3 * ramp
  profile = _profile(b"CMYK", A2B0=table)
  inks = RNG.integers(0, 255, (36, 40, 4), np.uint8)
  inks[..., 3] = np.where(np.arange(40) < 20, 0, 255)
  PIL.Image.fromarray(inks, "CMYK").save(
    tmp_path / "a.tif", icc_profile=profile
  )
  found = read_picture(str(tmp_path / "a.tif"))
  assert found.pixels[:, :20].min() > 0.98 and found.pixels[:, 20:].max() < -0.9
  assert found.profile[16:20] == b"RGB "
  assert found.said.endswith("its printing colours are converted to sRGB")


def test_a_profile_of_other_colours_is_left_out(tmp_path):
  pixels = RNG.integers(0, 255, (36, 40, 3), np.uint8)
  for space, kept in ((b"RGB ", True), (b"GRAY", False), (b"CMYK", False)):
    PIL.Image.fromarray(pixels).save(
      tmp_path / "a.png", icc_profile=_profile(space)
    )
    found = read_picture(str(tmp_path / "a.png"))
    assert (found.profile is not None) == kept
    assert ("profile is of other colours" in found.said) != kept


def test_grey_under_an_operator_of_ones_own_has_no_profile_of_grey(tmp_path):
  """What is restored is colour."""
  file = tmp_path / "a.png"
  pixels = RNG.integers(0, 255, (32, 32), np.uint8)
  PIL.Image.fromarray(pixels).save(file, icc_profile=_profile(b"GRAY"))
  debug = config.get_config("debug")
  debug.update(image=str(file), task="denoising")
  settings = command_line.to_settings(job.Settings, debug)
  assert job._read_picture(settings).profile is not None
  debug.update(task="custom", operator="own.py")
  for degrade in (False, True):
    debug.degrade = degrade
    settings = command_line.to_settings(job.Settings, debug)
    assert job._read_picture(settings).profile is None
