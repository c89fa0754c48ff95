"""Blurred photographs of little noise, restored beyond what Tikhonov gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line
from experiments.harness.subjects import samplers
from experiments.restore import image_settings, job, report
from experiments.restore.drawing import stepwise as drawing
from experiments.restore.picture_files import kernel_file
from posterior_jax.nfc_sampler import Jacobian, Sigma
from tests import oracles

KERNEL = kernel_file.trimmed(kernel_file.read("short"))
SIDE = 64


def _blurred(folder, noise_std, kernel=KERNEL):
  """A file of a blurred photograph, its observation, and the clean picture."""
  scene = jnp.asarray(photographs.load("coffee", SIDE + len(kernel) - 1))
  operator = pj.operators.blur(scene.shape, kernel, boundary="valid")
  y = np.asarray(operator.forward(scene[None])[0])
  y = y + noise_std * np.random.default_rng(0).standard_normal(y.shape)
  (folder / "y.png").write_bytes(photographs.as_png(y))
  seen = photographs.read(folder / "y.png") / 127.5 - 1
  given = pj.Observation(jnp.asarray(seen[None]), operator, noise_std)
  return given, operator.interior(scene)


def _prepared(folder, noise_std, form="", kernel=KERNEL, **fields):
  np.save(folder / "kernel.npy", kernel)
  found = config.get_config(form)
  found.update(image=str(folder / "y.png"), task="motion_blur", samples=0)
  found.update(kernel=str(folder / "kernel.npy"), noise_std=noise_std, **fields)
  return job.prepare(command_line.to_settings(job.Settings, found))


def _tikhonov(given, truth):
  """The best PSNR of |y - A x|^2 + l |grad x|^2 over l, told the truth."""
  height, width, _ = given.operator.image_shape
  lines = (4 * np.sin(np.pi * np.fft.fftfreq(n)) ** 2 for n in (height, width))
  gradient = np.add.outer(*lines) + 1e-5  # [H, W]

  @jax.jit
  def solved(weight):
    x, _ = given.operator.normal_solve(
      given.operator.adjoint(given.y),
      precision=weight * jnp.asarray(gradient, jnp.float32),
      noise_std=jnp.float32(1),
      tolerance=1e-5,
    )
    return given.operator.interior(x)[0]

  return max(
    float(pj.metrics.psnr(solved(10.0**e), truth))
    for e in np.arange(-5, -1, 0.25)
  )


def _drawn(prepared):
  drawn = drawing.draw(prepared, prepared.best, "image", lambda words: None)
  return drawn(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("noise_std", [image_settings.LEAST / 4, 0.01])
def test_it_is_above_tikhonov_that_was_told_the_truth(tmp_path, noise_std):
  given, truth = _blurred(tmp_path, noise_std)
  prepared = _prepared(tmp_path, noise_std)
  drawn = _drawn(prepared)
  operator = prepared.given.observation.operator
  found = operator.interior(jnp.asarray(drawn.image))
  psnr = float(pj.metrics.psnr(found, truth))
  least = _tikhonov(given, truth)
  print(f"noise {noise_std}: {psnr:.2f} dB, Tikhonov {least:.2f}")
  assert psnr > least + 1.5
  assert drawn.products == 0


@pytest.mark.slow
def test_a_kernel_turned_by_15_degrees_costs_little(tmp_path):
  """What believing the kernel loses, drawing it with the picture wins back."""
  line = np.zeros((13, 13))
  line[6] = 1 / 13
  true = np.asarray(pj.uncertain.turned(line, degrees=15, steps=3).values[2])
  truth = _blurred(tmp_path, 0.01, true)[1]
  psnr = {}
  for name, kernel, degrees in (
    ("believed", line, 0.0),
    ("drawn", line, 25.0),
    ("known", true, 0.0),
  ):
    prepared = _prepared(tmp_path, 0.01, kernel=kernel, kernel_degrees=degrees)
    drawn = _drawn(prepared)
    if degrees:
      assert abs(drawn.degrees - 15) < 3
      prepared = prepared.turned(drawn.degrees)
    operator = prepared.given.observation.operator
    found = operator.interior(jnp.asarray(drawn.image))
    psnr[name] = float(pj.metrics.psnr(found, truth))
  print(psnr)
  assert psnr["drawn"] > psnr["believed"] + 3
  assert psnr["drawn"] > psnr["known"] - 1


def test_changes_reach_the_parts_of_nfc(tmp_path):
  given, _ = _blurred(tmp_path, 0.01)
  words = ("width.factor=3.0", "levels=5", "schedule.start=noise")
  plain = image_settings.config(given, 20)
  expected = plain.replace(
    width={"factor": 3.0}, levels=5, schedule={"start": "noise"}
  )
  prepared = _prepared(tmp_path, 0.01, "debug", nfc=words)
  assert prepared.best.step.func.settings == expected != plain
  for word, sentence in (
    ("width.factor=0", r"factor must lie in \[0.01, 100\], got 0"),
    ("tie.factor=2", "tie is no field of NFCConfig, which has"),
    ("width.factor", "a change must be part.field=value, got 'width.factor'"),
  ):
    with oracles.refused(ValueError, sentence):
      samplers.changed(plain, samplers.assigned([word]))
  for fields, sentence in (
    ({"nfc": ("width.factor",)}, "a change must be part.field=value, got 'wi"),
    ({"nfc": ("levels=9",), "method": "DPS", "samples": 1}, "nfc must be left"),
  ):
    with pytest.raises(command_line.UsageError, match=sentence):
      _prepared(tmp_path, 0.01, **fields)


def test_settings_follow_noise_and_operator(tmp_path):
  """The fast twin of the test before."""
  given, _ = _blurred(tmp_path, 0.01)
  little = image_settings.config(given, 40)
  assert little.width == Sigma(factor=image_settings.WIDTH)
  assert little.schedule.sigma_min == 0.02  # twice the noise
  assert little.levels == image_settings.MOST_LEVELS
  assert image_settings.evaluations(given) == 1
  rounding = pj.Observation(given.y, given.operator, 0.002)
  least = image_settings.config(rounding, 40).schedule.sigma_min
  assert least == image_settings.LEAST
  search = image_settings.config(given, 100, kernel_known=False)
  assert search.levels == image_settings.SEARCH_LEVELS
  assert search.schedule.renewal == image_settings.SEARCH_RENEWAL
  # More noise, or nothing that Fourier space diagonalises: by the Jacobian.
  noisy = pj.Observation(given.y, given.operator, 0.05)
  y, shape = jnp.zeros((1, 32, 32, 3)), (32, 32, 3)
  holes = pj.operators.random_inpainting(shape)
  whole = pj.operators.inpainting(shape, np.ones(shape[:2], np.float32))
  for one, iterations, last in (
    (noisy, 3, 0.1),
    (pj.Observation(y, holes, 0.01), 10, 0.1),
    (pj.Observation(y, whole, 0.01), 10, 0.02),
  ):
    assert image_settings.config(one, 40).schedule.sigma_min == last
    assert image_settings.config(one, 40).width == Jacobian(factor=2.0)
    assert image_settings.config(one, 40).stop.max_iterations == iterations
    assert image_settings.evaluations(one) == 1 + iterations
  # What is seen stays as it was measured.
  seen = image_settings.config(pj.Observation(y, holes, 0.01), 40).schedule
  assert seen.averaged == "refined"
  seen = image_settings.config(pj.Observation(y, holes, 0.05), 40).schedule
  assert seen.averaged == "predicted"
  # Few levels are plug-and-play ones whatever the noise.
  for one, last in ((noisy, 0.0493), (pj.Observation(y, whole, 0.01), 0.02)):
    few = image_settings.config(one, 10)
    assert few == pj.NFCConfig.fast(
      schedule={"sigma_min": last}, predictor={"turned": True}
    )
    assert image_settings.evaluations(one, 10) == 1
    # A network of faces is not shown them upside down.
    upright = image_settings.config(one, 10, any_way_up=False)
    assert upright == few.replace(predictor={"turned": False}) != few
    assert upright.predictor.discrepancy == few.predictor.discrepancy
  assert image_settings.config(given, 10) == little.replace(levels=10)
  for noise_std, a_level in ((0.01, 1), (0.05, 4)):
    prepared = _prepared(tmp_path, noise_std, "debug")
    assert prepared.evaluations(prepared.best) == a_level
  row = {"method": "NFC", "samples": 0, "task": "motion_blur"}
  for noise_std, levels, words in (
    (0.01, 10, "NFC's plug-and-play levels, which follow the noise."),
    (0.05, 10, "NFC's fast() setting."),
    (0.05, 20, "NFC's restoration() setting."),
  ):
    own = _prepared(tmp_path, noise_std, "debug").given
    about = row | {"levels": levels, "noise_std": noise_std}
    assert report._caption(about, own).endswith(f"Restored: {words}")
