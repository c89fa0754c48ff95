"""Noise and operators of odd files: estimated, checked, or asked about."""

import warnings

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from configs import restore as config
from experiments.data import degradations, photographs
from experiments.harness import command_line
from experiments.harness.command_line import UsageError
from experiments.restore import doubt, job, report, study
from experiments.restore.measurement import noise
from experiments.restore.measurement.degradation import load_operator
from experiments.restore.measurement.observed import Given, observe
from experiments.restore.picture_files.picture import read_picture
from experiments.restore.report import Restored
from posterior_jax import Observation, operators
from tests.oracles import refused

RNG = np.random.default_rng(0)


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
    load_operator(str(file), degrade=True)((8, 8, 3))


@pytest.mark.parametrize(
  ("degrade", "words"),
  [
    (True, r"have an image_shape within \(8, 8, 3\) of the picture"),
    (False, r"have the measurement_shape \(8, 8, 3\) of the picture"),
  ],
)
def test_an_operator_of_ones_own_is_of_the_picture(tmp_path, degrade, words):
  file = tmp_path / "own.py"
  file.write_text(
    "from posterior_jax import operators\n"
    "def operator(shape):\n"
    "  return operators.linear(lambda x: 2 * x, (16, 8, 3))\n"
  )
  with refused(ValueError, f"own.py' must {words}, got .16, 8, 3"):
    load_operator(str(file), degrade=degrade)((8, 8, 3))


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


@pytest.mark.slow
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
