"""JPEG as a measurement: Pillow's files, tangents, samplers."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import posterior_jax as pj
from experiments.data import photographs
from posterior_jax import baselines, operators
from posterior_jax.nfc_sampler import Spectrum
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")


def _levels(x):
  return np.asarray((x + 1) * 127.5)


@pytest.mark.parametrize(
  "channels, chroma",
  # A grey picture has no colours to halve.
  [(1, 2), (3, 1), (3, 2), pytest.param(1, 1, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_it_shows_what_pillow_decodes(quality, chroma, channels):
  """But where a coefficient of libjpeg's integers is rounded otherwise."""
  given = photographs.load("coffee", 64)[..., :channels]
  whole = np.round(_levels(given)).astype(np.uint8)
  file = io.BytesIO()
  picture = PIL.Image.fromarray(whole if channels == 3 else whole[..., 0])
  picture.save(file, "JPEG", quality=quality, subsampling=2 * (chroma - 1))
  expected = np.asarray(PIL.Image.open(file), float).reshape(whole.shape)
  operator = operators.jpeg(whole.shape, quality=quality, chroma=chroma)
  found = _levels(operator.forward(jnp.asarray(np.float32(whole / 127.5 - 1))))
  signed = found - expected
  # No channel drifts: colour differences are rounded on libjpeg's side.
  assert np.abs(signed.mean((0, 1))).max() < 0.05  # levels
  error = np.abs(signed)
  assert np.mean(error <= 1.01) > 0.95
  assert error.mean() < 0.1 * np.abs(found - whole).mean()


def test_halves_of_a_colour_difference_go_down():
  """As of a flat picture whose blue is a level above its grey."""
  whole = np.broadcast_to(np.array([100, 100, 101], np.uint8), (16, 16, 3))
  file = io.BytesIO()
  PIL.Image.fromarray(whole).save(file, "JPEG", quality=100, subsampling=0)
  expected = np.asarray(PIL.Image.open(file), float)
  operator = operators.jpeg(whole.shape, quality=100, chroma=1)
  found = _levels(operator.forward(jnp.asarray(np.float32(whole / 127.5 - 1))))
  np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("chroma", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_its_tangent_takes_rounding_for_the_identity(chroma):
  operator = operators.jpeg((16, 16, 3), quality=5, chroma=chroma)
  x, v, w = jax.random.uniform(
    jax.random.key(0), (3, 1, 16, 16, 3), minval=-0.5, maxval=0.5
  )
  if chroma == 2:  # colours that alternate are lost, as they are in the file
    v = jnp.broadcast_to(v.mean(-1, keepdims=True), v.shape)

  @jax.jit
  def products(x, v, w):
    tangent = operator.tangent(x)
    along = tangent.forward(v)
    return operator.forward(x), along, (along * w, v * tangent.adjoint(w))

  y, along, sides = products(x, v, w)
  np.testing.assert_allclose(along, v, atol=1e-4)
  left, right = map(jnp.sum, sides)
  np.testing.assert_allclose(left, right, rtol=1e-4)
  assert jnp.abs(y - x).mean() > 0.05  # far from the identity


PRIOR = pj.priors.gaussian_prior(
  pj.priors.power_law_spectrum(32, 32, pixel_std=0.4, exponent=6.0)
)


@pytest.mark.parametrize(
  "sampler",
  [
    pj.nfc(
      pj.NFCConfig.calibrated(levels=20, width=Spectrum()),
      spectrum=PRIOR.spectrum,
    ),
    baselines.dps(baselines.DPSConfig.tuned(levels=100, scale=0.3)),
    pytest.param(
      baselines.daps(
        baselines.DAPSConfig(levels=30, step_size=5e-4, predictor_steps=1)
      ),
      marks=pytest.mark.slow,
    ),
  ],
  ids=["NFC", "DPS", "DAPS"],
)
def test_samplers_come_nearer_than_the_file(sampler):
  truth = PRIOR.sample(jax.random.key(0), (1,), channels=1)
  operator = operators.jpeg((32, 32, 1), quality=5)
  seen = pj.Observation(operator.forward(truth), operator, 0.05)
  x, _ = pj.run(sampler, PRIOR.denoise, seen, jax.random.key(1), num_samples=4)
  error, before = (
    float(jnp.mean((found - truth) ** 2)) for found in (x.mean(0), seen.y)
  )
  print(error / before)
  assert error < 0.75 * before


@pytest.mark.parametrize(
  ("shape", "changes", "words"),
  [
    ((16, 16, 3), {"quality": 0}, r"quality must lie in \[1, 100\], got 0"),
    ((16, 16, 3), {"chroma": 4}, "chroma must be 1 or 2, got 4"),
    ((16, 16, 2), {}, "image_shape must have 1 or 3 channels, got 2"),
    ((16, 24, 3), {}, "image_shape must have sides divisible by 16"),
    ((16, 20, 1), {}, "image_shape must have sides divisible by 8"),
  ],
)
def test_what_no_file_holds_is_refused(shape, changes, words):
  with refused(ValueError, words):
    operators.jpeg(shape, **changes)
