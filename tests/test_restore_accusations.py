"""Of whom a restoration is doubted: counts over samplers, and wrong kernels.

What is said of which residual, without a run: `test_restore_doubt`.
"""

import jax
import numpy as np
import pytest
import scipy.ndimage

import posterior_jax as pj
from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line
from experiments.harness.subjects import samplers
from experiments.restore import doubt, job, study
from experiments.restore.drawing import stepwise as drawing
from experiments.restore.picture_files import kernel_file
from experiments.restore.report import Restored

SIDE = 64
PHOTOGRAPHS = ("astronaut", "coffee")
LEVELS = (0.01, 0.04)  # of the noise
CALLS = 40  # of the denoiser, an image
KERNEL = kernel_file.trimmed(kernel_file.read("short"))


def _run(folder, method, task, photograph, noise_std, said):
  """What is said of a picture blurred by KERNEL, or with noise alone."""
  taps = KERNEL if task == "motion_blur" else np.ones((1, 1))
  side = SIDE + len(taps) - 1
  scene = photographs.load(photograph, side)
  operator = pj.operators.blur(scene.shape, taps, boundary="valid")
  y = np.asarray(operator.forward(scene[None])[0])
  y = y + noise_std * np.random.default_rng(0).standard_normal(y.shape)
  file = folder / f"{photograph}_{task}_{noise_std}.png"
  file.write_bytes(photographs.as_png(y))
  found = config.get_config()
  found.update(image=str(file), task=task, method=method, noise_std=noise_std)
  found.update(levels=CALLS)
  found.update(samples=0 if method == "NFC" else 1)
  if task == "motion_blur":
    np.save(folder / "kernel.npy", said)
    found.kernel = str(folder / "kernel.npy")
  given = job.prepare(command_line.to_settings(job.Settings, found))
  draw = drawing.draw(given, given.best, "image", lambda words: None)
  image = draw(jax.random.key(0)).image
  empty = np.zeros((0, *image.shape), np.float32)
  row = study.evaluate(given.given, Restored(image, empty))
  hint = doubt.flip_hint(given.given.observation)
  return row["residual"], [hint] * bool(hint) + doubt.about(given, image, row)


@pytest.mark.slow
@pytest.mark.parametrize("method", samplers.METHODS)
def test_right_runs_accuse_nobody(tmp_path, method):
  """Four of each sampler, six of NFC: two photographs, 50 runs in all.

  A method that stopped short may say so; nobody's inputs are called wrong.
  """
  tasks = ("denoising", "motion_blur")
  if method == "DDRM":  # it has no motion blur
    tasks = ("denoising", "denoising")
  runs = [
    (task, photograph, noise_std)
    for task, noise_std in zip(tasks, LEVELS, strict=True)
    for photograph in PHOTOGRAPHS
  ]
  if method == "NFC":  # and without noise, but for rounding
    runs += [("motion_blur", photograph, 0.0) for photograph in PHOTOGRAPHS]
  accused = []
  for task, photograph, noise_std in runs:
    residual, said = _run(tmp_path, method, task, photograph, noise_std, KERNEL)
    print(method, task, photograph, noise_std, f"{residual:.2f}", said)
    accused += [line for line in said if "is the method's" not in line]
  print(f"{method}: {len(accused)} of {len(runs)} right runs accused")
  assert not accused


def _wrong_kernels():
  line = np.zeros((13, 13))
  line[6, 3:10] = 1 / 7
  wide = scipy.ndimage.gaussian_filter(KERNEL, 1.5)
  return {
    "flipped": KERNEL[::-1, ::-1],
    "turned by 90 degrees": np.rot90(KERNEL),
    "turned by 30 degrees": np.asarray(
      pj.uncertain.turned(KERNEL, degrees=30, steps=3).values[0]
    ),
    "a line": line,
    "wider": wide / wide.sum(),
    "none": np.pad(np.ones((1, 1)), len(KERNEL) // 2),
  }


@pytest.mark.slow
def test_wrong_kernels_are_warned_of(tmp_path):
  """Of six wrong ones at least five."""
  warned = []
  for name, kernel in _wrong_kernels().items():
    residual, said = _run(
      tmp_path, "NFC", "motion_blur", "coffee", 0.01, kernel
    )
    print(name, f"{residual:.2f}", said)
    warned.append(any("is the method's" not in line for line in said))
  print(f"{sum(warned)} of {len(warned)} wrong kernels warned of")
  assert sum(warned) >= 5
