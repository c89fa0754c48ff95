"""A clean picture degraded by a scene's blur: scored without its margin."""

import jax.numpy as jnp
import numpy as np

from experiments.restore import study
from experiments.restore.measurement.observed import Given
from experiments.restore.report import Restored
from posterior_jax import Observation, metrics, operators


def test_a_picture_without_the_scenes_margin_has_no_residual():
  scene = np.random.default_rng(0).uniform(-1, 1, (24, 24, 3))
  scene = scene.astype(np.float32)
  operator = operators.gaussian_blur(
    (24, 24, 3), size=5, std=1.0, boundary="valid"
  )
  y = operator.forward(jnp.asarray(scene)[None])
  truth = operator.interior(jnp.asarray(scene)[None])
  given = Given(truth, Observation(y, operator, 0.05))
  row = study.evaluate(given, Restored(scene, np.empty((0, 24, 24, 3))))
  assert row["residual_given"] is None and row["residual"] < 1e-3
  expected = float(metrics.psnr(y, truth)[0])
  np.testing.assert_allclose(row["psnr_given"], expected, rtol=1e-6)
  assert row["psnr"] > 60 and row["ssim_given"] < 1
