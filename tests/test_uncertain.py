"""Kernels that are not quite known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from experiments.data import photographs
from posterior_jax import operators, uncertain
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

LINE = np.zeros((9, 9))
LINE[4] = 1 / 9
FAMILY = uncertain.turned(LINE, degrees=30, steps=13)  # 5 degrees apart
SIZE = FAMILY.values.shape[1]
SIDE = 48
PRIOR = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(SIDE, SIDE))
NOISE = 0.02


def _observed(number, scene):
  """What one kernel makes of a scene, where the middle one is believed."""
  operator = operators.blur(
    scene.shape[1:], np.asarray(FAMILY.values[number]), boundary="valid"
  )
  clean = operator.forward(scene)
  noise = NOISE * jax.random.normal(jax.random.key(4), clean.shape)
  middle = dataclasses.replace(operator, kernel=FAMILY.values[6])
  return pj.Observation(clean + noise, middle, NOISE)


def test_a_family_turns_and_stretches():
  assert FAMILY.values.shape == (13, SIZE, SIZE)
  np.testing.assert_allclose(FAMILY.values.sum((1, 2)), 1, rtol=1e-5)
  np.testing.assert_allclose(FAMILY.degrees, np.arange(-30, 31, 5), atol=1e-4)
  middle = np.asarray(FAMILY.values[6])
  inside = slice(SIZE // 2 - 4, SIZE // 2 + 5)
  np.testing.assert_allclose(middle[inside, inside], LINE, atol=1e-6)
  # As the rows of a picture go down, anticlockwise takes the right end up.
  at = np.arange(SIZE) - SIZE // 2
  for degrees, kernel in zip(FAMILY.degrees, np.asarray(FAMILY.values)):
    across = (kernel * at[:, None] * at).sum()
    spread = (kernel * at**2).sum() - (kernel * at[:, None] ** 2).sum()
    found = -0.5 * np.rad2deg(np.arctan2(2 * across, spread))
    assert abs(found - degrees) < 2.5
  wide = uncertain.turned(LINE, degrees=0, scale=1.5, steps=1, scales=3)
  spread = np.asarray(wide.values).sum(1)
  lengths = (spread > 1e-3).sum(-1)
  assert lengths[0] < 9 <= lengths[1] < lengths[2]


@pytest.mark.parametrize("number", [3, 6, 10])
def test_a_flat_prediction_finds_the_kernel(number):
  """Nothing but the prior's spectrum is known of the picture."""
  reach = SIZE // 2
  side = SIDE + 2 * reach
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(side, side))
  scene = prior.sample(jax.random.key(number), (1,), channels=3)
  given = _observed(number, scene)
  likely = uncertain.log_likelihood(
    given, FAMILY, jnp.zeros(scene.shape), PRIOR.spectrum
  )
  chance = jax.nn.softmax(likely)
  mean = float(chance @ FAMILY.degrees)
  print(number, mean, np.round(chance, 2))
  assert abs(mean - FAMILY.degrees[number]) < 6


def _sampler(levels, side):
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(side, side))
  sampler = pj.nfc(
    pj.NFCConfig.calibrated(levels=levels, width={"inflation": 1.0}),
    spectrum=prior.spectrum,
  )
  return (
    prior,
    sampler,
    uncertain.uncertain(sampler, FAMILY, spectrum=PRIOR.spectrum),
  )


def test_a_run_says_which_kernel_it_took():
  """The fast twin of the next test."""
  scene = jnp.zeros((1, SIDE + SIZE - 1, SIDE + SIZE - 1, 1))
  prior, sampler, _ = _sampler(2, scene.shape[1])
  drawn = uncertain.uncertain(
    pj.recorded(sampler), FAMILY, spectrum=PRIOR.spectrum
  )
  samples, info = pj.run(
    drawn, prior.denoise, _observed(9, scene), jax.random.key(1), num_samples=2
  )
  assert samples.shape == (2, *scene.shape)
  assert info.choice.shape == (2, 2)
  assert info.trajectory.shape == (2, *samples.shape)
  np.testing.assert_array_equal(info.trajectory[-1], samples)
  assert np.asarray(info.calls).tolist() == [2, 2]


@pytest.mark.slow
def test_samples_have_kernels_of_their_own():
  scene = jnp.asarray(photographs.load("chelsea", SIDE + SIZE - 1)[None])
  given = _observed(9, scene)  # 15 degrees off
  prior, sampler, drawn = _sampler(8, scene.shape[1])
  samples, info = pj.run(
    drawn, prior.denoise, given, jax.random.key(1), num_samples=4
  )
  assert samples.shape == (4, *scene.shape)
  assert info.choice.shape == (8, 4)
  assert int(info.calls[0]) == 2
  last = FAMILY.degrees[info.choice[-1]]
  print(np.asarray(last))
  assert abs(float(last.mean()) - 15) < 6
  fixed, _ = pj.run(
    sampler, prior.denoise, given, jax.random.key(1), num_samples=4
  )
  right = dataclasses.replace(
    given,
    operator=dataclasses.replace(given.operator, kernel=FAMILY.values[9]),
  )
  known, _ = pj.run(
    sampler, prior.denoise, right, jax.random.key(1), num_samples=4
  )
  errors = [
    float(jnp.mean((x.mean(0) - scene) ** 2)) for x in (known, samples, fixed)
  ]
  print(errors)
  assert errors[1] < errors[0] + 0.5 * (errors[2] - errors[0])


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: uncertain.turned(np.ones((4, 4))), r"kernel must be \[k, k\]"),
    (lambda: uncertain.turned("k.png"), "kernel must be an array of real"),
    (
      lambda: uncertain.turned(LINE, degrees=120),
      r"degrees must lie in \[0, 90\], got 120",
    ),
    (lambda: uncertain.turned(LINE, scale=0.5), r"scale must lie in \[1, 2\]"),
    (lambda: uncertain.turned(LINE, steps=4), "steps must be odd and positive"),
    (
      lambda: uncertain.turned(LINE, steps=1),
      "steps must be 3 or more where degrees is above 0, got 1 with 30",
    ),
    (
      lambda: uncertain.turned(LINE, scale=1.5, scales=1),
      "scales must be 3 or more where scale is above 1, got 1 with 1.5",
    ),
  ],
)
def test_refusals(call, words):
  with refused(ValueError, words):
    call()


def test_every_picture_has_a_kernel_of_its_own():
  prior, _, drawn = _sampler(2, SIDE + SIZE - 1)
  scenes = jnp.zeros((2, SIDE + SIZE - 1, SIDE + SIZE - 1, 1))
  with refused(ValueError, "y must hold one observation where its kernel is"):
    pj.run(drawn, prior.denoise, _observed(9, scenes), jax.random.key(1))


def test_only_blurs_have_kernels():
  sampler = uncertain.uncertain(
    pj.nfc(pj.NFCConfig.calibrated(levels=2), spectrum=PRIOR.spectrum),
    FAMILY,
    spectrum=PRIOR.spectrum,
  )
  shape = (SIDE, SIDE, 1)
  for operator, kind, words in (
    (operators.random_inpainting(shape), TypeError, "operator must be a blur"),
    (
      operators.gaussian_blur(shape, size=5, std=1.0),
      ValueError,
      "kernel of the operator must have the family's shape",
    ),
  ):
    given = pj.Observation(jnp.zeros((1, *shape)), operator, NOISE)
    with refused(kind, words):
      pj.run(sampler, PRIOR.denoise, given, jax.random.key(0))
  with refused(TypeError, "sampler and family must be a Sampler and Kernels"):
    uncertain.uncertain(sampler, LINE, spectrum=PRIOR.spectrum)
