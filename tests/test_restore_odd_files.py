"""Files that an outsider brought: what is read, said of them, or refused."""

import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from configs import restore as config
from experiments.data import degradations, photographs
from experiments.harness import command_line
from experiments.harness.command_line import UsageError
from experiments.restore import doubt, job, noise, picture_file, report, study
from experiments.restore.degradation import load_operator
from experiments.restore.mask import about_mask, read_mask, soft_share
from experiments.restore.observed import Given, observe
from experiments.restore.picture import read_picture
from experiments.restore.report import Restored
from posterior_jax import Observation, operators
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
    with refused(ValueError, r"16 bits a channel in planes; store its .*\)$"):
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


# --- noise --------------------------------------------------------------------


def _noisy_scene(level):
  y = operators.gaussian_blur((192, 192, 3), size=13, std=1.5).forward(
    photographs.load("coffee", 192)
  )
  return np.asarray(y) + level * RNG.standard_normal((192, 192, 3))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_burnt_out_skies_have_no_noise_to_say(share):
  y = _noisy_scene(0.08)
  y[: round(share * 192)] = 1.2
  y = np.clip(np.round((y + 1) * 127.5), 0, 255) / 127.5 - 1
  assert abs(noise.estimate(y.astype(np.float32)) / 0.08 - 1) < 0.2


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_jpeg_leaves_errors_of_its_own(tmp_path, quality):
  """An estimate sees what JPEG leaves of noise, and not what JPEG adds."""
  y = _noisy_scene(3 / 127.5)
  pixels = np.clip(np.round((y + 1) * 127.5), 0, 255).astype(np.uint8)
  PIL.Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=quality)
  found = read_picture(str(tmp_path / "a.jpg"))
  least = noise.UNIT * noise.rounding_of_jpeg(found.steps)
  assert {50: 3, 75: 1.5, 90: 0.5}[quality] < least < 4.5
  assert noise.rounding_of_jpeg(()) == 0


def test_strips_are_too_narrow_for_an_estimate():
  with refused(ValueError, "noise_std must be given: only 0 patches of 8 x 8"):
    noise.estimate(np.zeros((500, 3, 3)))


# --- operators, results -------------------------------------------------------

WRONG = """
from posterior_jax import operators
def operator(shape):
  return operators.linear(
    lambda x: 2 * x, shape, adjoint=lambda y: 3 * y
  )
"""

LATE = """
from posterior_jax import Operator
class Own(Operator):
  is_linear, gram_gain, adjoint, normal_solve = True, 1.0, None, None
  def __init__(self, shape):
    self.image_shape = self.measurement_shape = shape
  measurement_shape = None
  def forward(self, x):
    raise KeyError("later")
operator = Own
"""


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (WRONG, "is wrong: adjoint must be the transpose of forward"),
    ("def operator(shape): return 1 / 0", "cannot be run: ZeroDivisionError"),
    ("raise SystemExit(3)", "cannot be run: SystemExit, 3"),
    ("def operator(shape:", "cannot be run: SyntaxError"),
    (LATE, "cannot be run: KeyError, 'later'"),
    (LATE.replace("True", "False"), "cannot be run: KeyError, 'later'"),
  ],
)
def test_an_operator_of_ones_own_is_checked(tmp_path, text, words):
  file = tmp_path / "own.py"
  file.write_text(text)
  with refused(ValueError, f"own.py' {words}"):
    load_operator(str(file))((8, 8, 3))


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


def test_bright_pictures_are_not_accused(tmp_path):
  """Snow and fog: no pixel of 8 bits is below the middle grey."""
  pixels = RNG.integers(140, 255, (40, 48, 3), np.uint8)
  PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
  debug = config.get_config("debug")
  debug.update(image=str(tmp_path / "a.png"), task="denoising", noise_std=0.03)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    job.prepare(command_line.to_settings(job.Settings, debug))


def test_a_single_picture_that_is_not_finite_is_a_sentence(monkeypatch):
  def compute(job, folder):
    raise doubt.NotFinite("the restored picture must be finite")

  class Run:
    folder = None

  monkeypatch.setattr(study, "compute", compute)
  with refused(UsageError, "the restored picture must be finite"):
    study.restore(None, Run())


def test_the_spread_is_that_of_the_picture():
  """And not of the scene, whose margin nobody saw."""
  operator = operators.gaussian_blur(
    (24, 24, 3), size=5, std=1.0, boundary="valid"
  )
  samples = RNG.standard_normal((4, 24, 24, 3)).astype(np.float32)
  samples[:, 2:-2, 2:-2] *= 0.1
  given = Given(None, Observation(samples[0, None, :20, :20], operator, 0.05))
  restored = Restored(samples[0], samples)
  row = study.evaluate(given, restored)
  shown = report.Restored(samples[0, 2:-2, 2:-2], samples[:, 2:-2, 2:-2])
  spread = shown.samples.std(0, ddof=1)
  assert abs(row["spread"] / np.sqrt((spread**2).mean()) - 1) < 1e-5


def test_an_operator_that_is_not_linear_can_be_shown():
  """By its tangent; and what is no picture has no PSNR."""
  operator = operators.phase_retrieval((16, 16, 3))
  truth = RNG.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
  y = operator.forward(truth)
  given = Given(truth, Observation(y, operator, 0.05))
  assert degradations.as_image(given.observation).shape == truth.shape
  row = study.evaluate(given, Restored(truth[0], truth))
  assert row["psnr_given"] is None and row["psnr"] > 60


def test_a_blur_that_reaches_too_far_is_refused():
  """Before anything of its size is made."""
  with refused(ValueError, "reach no further than the picture's 40 x 32 pix"):
    observe(
      np.zeros((32, 40, 3), np.float32),
      lambda shape: pytest.fail("built"),
      enlarge=1,
      noise_std=0.1,
      degrade=False,
      seed=0,
      margin=2000,
    )


@pytest.mark.parametrize(("said", "asked"), [(0.02, False), (0.2, True)])
def test_far_too_much_noise_is_asked_about(tmp_path, said, asked):
  file = tmp_path / "a.png"
  file.write_bytes(photographs.as_png(_noisy_scene(0.02)))
  debug = config.get_config("debug")
  debug.update(image=str(file), task="denoising", noise_std=said)
  lines = []
  job.prepare(command_line.to_settings(job.Settings, debug), say=lines.append)
  assert any("looks less noisy" in line for line in lines) == asked
