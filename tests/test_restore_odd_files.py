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


def _png(levels, colour_type, extra=b""):
  """The bytes of a PNG of 16 bits that Pillow does not write."""
  height, width = levels.shape[:2]
  written = picture_file.as_png(np.zeros((height, width, 1)), bits=16)
  head = bytearray(written[8:33])
  head[17] = colour_type
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


def test_the_first_of_several_frames_is_said(tmp_path):
  first, *others = (
    PIL.Image.fromarray(RNG.integers(0, 255, (36, 40, 3), np.uint8))
    for _ in range(3)
  )
  first.save(tmp_path / "a.tif", save_all=True, append_images=others)
  found = read_picture(str(tmp_path / "a.tif"))
  assert "of 3 frames the first is taken" in found.said


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


def test_what_is_read_is_said(tmp_path):
  for name in ("a.gif", "b.txt", "c.png"):
    (tmp_path / name).write_bytes(b"GIF89a no picture")
    with refused(ValueError, "cannot be read as a picture: PNG, JPEG, WebP"):
      picture_file.read("image", str(tmp_path / name))


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


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (WRONG, "is wrong: adjoint must be the transpose of forward"),
    ("def operator(shape): return 1 / 0", "cannot be run: ZeroDivisionError"),
    ("raise SystemExit(3)", "cannot be run: SystemExit, 3"),
    ("def operator(shape:", "cannot be run: SyntaxError"),
  ],
)
def test_an_operator_of_ones_own_is_checked(tmp_path, text, words):
  file = tmp_path / "own.py"
  file.write_text(text)
  with refused(ValueError, f"own.py' {words}"):
    load_operator(str(file))((8, 8, 3))


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
