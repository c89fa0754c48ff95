"""Nonlinear measurements: their tangents, and every sampler that takes them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import baselines, operators
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler import (
  Exact,
  Gradient,
  Langevin,
  Sigma,
  Spectrum,
  compose,
  levels_of,
  parts_of,
)
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (8, 8, 1)
NOISE = 0.1
PRIOR = pj.priors.gaussian_prior(
  pj.priors.power_law_spectrum(8, 8, pixel_std=0.3)
)
BLUR = operators.gaussian_blur(SHAPE, size=3, std=0.7, boundary="circular")


def _bent(x):
  """Blur, then a sensor's soft saturation."""
  return jnp.tanh(BLUR.forward(x))


BENT = operators.nonlinear(_bent, SHAPE)


def _observed(operator, noise_std=NOISE):
  truth = PRIOR.sample(jax.random.key(3), (1,), channels=1)
  clean = operator.forward(truth)
  noise = noise_std * jax.random.normal(jax.random.key(4), clean.shape)
  return truth, pj.Observation(clean + noise, operator, noise_std)


@pytest.mark.parametrize(
  "operator",
  [
    pytest.param(BENT, marks=pytest.mark.slow),
    operators.phase_retrieval((8, 6, 2)),
    pytest.param(
      operators.nonlinear(lambda x: jnp.clip(2 * x, -1, 1)[:4], SHAPE),
      marks=pytest.mark.slow,
    ),
  ],
  ids=["tanh", "phase", "clip"],
)
def test_a_tangent_is_the_derivative_at_every_image(operator):
  shape = (2, 1, *operator.image_shape)
  x, v = jax.random.normal(jax.random.key(0), (2, *shape))
  step = 1e-2

  @jax.jit
  def derivatives(x, v):
    tangent = operator.tangent(x)
    ahead, behind = (operator.forward(x + h * v) for h in (step, -step))
    found = tangent.forward(v)
    y = jax.random.normal(jax.random.key(1), found.shape)
    left = jnp.sum(found * y, axis=(-3, -2, -1))
    right = jnp.sum(v * tangent.adjoint(y), axis=(-3, -2, -1))
    return found, (ahead - behind) / (2 * step), left, right

  found, differences, left, right = map(np.asarray, derivatives(x, v))
  # Central differences are off by the cube; a clip has its corners.
  error = np.abs(found - differences)
  assert np.median(error) < 1e-3 * np.abs(found).max()
  np.testing.assert_allclose(left, right, rtol=1e-4)
  operators.check_operator(jax.jit(operator.tangent)(x[:1, 0]))


def test_an_observation_is_what_its_tangent_says():
  _, given = _observed(BENT)
  x = jax.random.normal(jax.random.key(5), (3, 1, *SHAPE))

  @jax.jit
  def residuals(x):
    local = given.linearised(x)
    return local.y - local.operator.forward(x), given.y - BENT.forward(x)

  np.testing.assert_allclose(*residuals(x), atol=1e-6)
  _, linear = _observed(BLUR)
  assert linear.linearised(x) is linear


@pytest.mark.slow
@pytest.mark.parametrize("linearisations", [1, 3])
def test_a_linear_function_gives_the_samples_of_its_operator(linearisations):
  """Whichever way the same measurement is written."""
  operator = operators.nonlinear(lambda x: BLUR.forward(x), SHAPE)
  _, given = _observed(BLUR)
  config = pj.NFCConfig.calibrated(
    levels=4, linearisations=linearisations, width=Spectrum()
  )
  sampler = pj.nfc(config, spectrum=PRIOR.spectrum)
  found = [
    pj.run(
      sampler,
      PRIOR.denoise,
      pj.Observation(given.y, each, NOISE),
      jax.random.key(0),
      num_samples=2,
    )[0]
    for each in (BLUR, operator)
  ]
  np.testing.assert_allclose(found[0], found[1], atol=2e-4)


@pytest.mark.parametrize(
  ("inner", "linear"),
  [(Exact(), [True] * 3), (Gradient(5), [False]), (Langevin(5, 1e-3), [False])],
  ids=["exact", "gradient", "langevin"],
)
def test_updates_go_through_a_level_once(inner, linear):
  """By the measurement itself; draws take its tangent, three times."""
  config = pj.NFCConfig(levels=2, width=Sigma(), inner=inner)
  parts, taken = parts_of(config), []

  def likelihood(key, observation, *rest):
    taken.append(observation.operator.is_linear)
    return parts.likelihood(key, observation, *rest)

  sampler = compose(parts._replace(likelihood=likelihood), levels_of(config))
  _, given = _observed(BENT)
  jax.eval_shape(
    lambda key: pj.run(sampler, PRIOR.denoise, given, key), jax.random.key(0)
  )
  assert taken == linear


def test_descent_ends_where_the_measurement_itself_says():
  _, given = _observed(BENT)
  centre = jnp.full((1, 1, *SHAPE), 0.8)  # where the sensor is bent

  def energy(z):
    misfit = (_bent(z) - given.y) / NOISE
    return 0.5 * (jnp.sum(misfit**2) + jnp.sum((z - centre) ** 2) / 0.3)

  @jax.jit
  def slopes():
    target = gaussian.Target(given, centre, jnp.asarray(0.3))
    z = gaussian.descend(target, steps=100)
    return [jnp.linalg.norm(jax.grad(energy)(x)) for x in (centre, z)]

  first, last = slopes()
  assert last < 1e-2 * first


def _settings(levels):
  return {
    "NFC": pj.nfc(
      pj.NFCConfig.calibrated(levels=levels), spectrum=PRIOR.spectrum
    ),
    "NFC restoration": pj.nfc(pj.NFCConfig.restoration(levels=levels)),
    "DPS": baselines.dps(baselines.DPSConfig.tuned(levels=levels, scale=1.0)),
    "DAPS": baselines.daps(baselines.DAPSConfig(levels=levels, step_size=5e-3)),
    "MMPS": baselines.mmps(baselines.MMPSConfig(levels=levels, iterations=5)),
    "FAST-DIPS": baselines.fastdips(
      baselines.FASTDIPSConfig(levels=levels, iterations=4, steps=3)
    ),
    "SITCOM": baselines.sitcom(baselines.SITCOMConfig(levels=levels, steps=5)),
  }


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(x, marks=pytest.mark.slow if x == "NFC restoration" else [])
    for x in _settings(1)
  ],
)
def test_samplers_come_nearer_than_the_prior(name):
  truth, given = _observed(BENT)
  x, info = pj.run(
    _settings(25)[name],
    PRIOR.denoise,
    given,
    jax.random.key(1),
    num_samples=4,
  )
  error = jnp.sqrt(jnp.mean((x.mean(0) - truth) ** 2))
  # The prior's mean is 0, so that it is off by the truth itself.
  assert error < 0.7 * jnp.sqrt(jnp.mean(truth**2))
  assert float(info.residual[-1].mean()) < 2


def test_few_levels_of_a_guess_do_not_run_away():
  """From noise, where steps along the tangent led four truths' sizes away."""
  steep = operators.nonlinear(lambda x: jnp.tanh(2 * BLUR.forward(x)), SHAPE)
  truth, given = _observed(steep)
  sampler = pj.nfc(pj.NFCConfig.guided(levels=5, schedule={"start": "noise"}))
  key = jax.random.key(1)
  x, _ = pj.run(sampler, PRIOR.denoise, given, key, num_samples=4)
  error = jnp.sqrt(jnp.mean((x - truth) ** 2))
  # Of single draws, each as far from the mean as the truth is.
  assert error < jnp.sqrt(jnp.mean(truth**2)), error


@pytest.mark.parametrize(
  "sampler",
  [
    pj.nfc(pj.NFCConfig.fast(levels=2), spectrum=PRIOR.spectrum),
    pj.nfc(pj.NFCConfig.paper(levels=2, fusion=None)),
    baselines.ddnm(baselines.DDNMConfig(levels=2)),
    baselines.ddrm(baselines.DDRMConfig(levels=2)),
    baselines.diffpir(baselines.DiffPIRConfig(levels=2)),
    baselines.pigdm(baselines.PiGDMConfig(levels=2)),
    baselines.pnpdm(baselines.PnPDMConfig(levels=2)),
    baselines.reddiff(baselines.REDDiffConfig(levels=2)),
    baselines.fgps(baselines.FGPSConfig(levels=2)),
    baselines.daps(baselines.DAPSConfig(levels=2, inner="exact")),
  ],
  ids=range(10),
)
def test_who_needs_a_matrix_says_so(sampler):
  _, given = _observed(BENT)
  with pytest.raises(ValueError) as caught:
    pj.run(sampler, PRIOR.denoise, given, jax.random.key(0))
  text = str(caught.value)
  assert re.search(
    "must be linear here|is taken for none|ddrm needs an op", text
  )
  assert "\n" not in text


@pytest.mark.parametrize(
  ("function", "error", "words"),
  [
    (3, TypeError, "function must be callable, got int"),
    (lambda x: x.sum(), ValueError, r"must return a real array \[h, w, c\]"),
    (lambda x: jnp.fft.fft2(x), ValueError, "must return a real array"),
    (
      lambda x: jax.pure_callback(np.tanh, x, x),
      ValueError,
      "function must have derivatives in JAX operations",
    ),
    (jnp.log, ValueError, "function must have finite values and derivatives"),
    (
      lambda x: jnp.sqrt(jnp.abs(x)),
      ValueError,
      "function must have finite values and derivatives",
    ),
    (np.sin, ValueError, "function must consist of JAX operations, jnp in pl"),
    (jnp.round, ValueError, "a derivative that is not 0 everywhere"),
    (jnp.sqrt, ValueError, "function must have finite values and derivatives"),
  ],
)
def test_bad_functions_are_one_sentence(function, error, words):
  with refused(error, words):
    operators.nonlinear(function, SHAPE)


@pytest.mark.parametrize(
  "function",
  [
    lambda x: jnp.maximum(jnp.abs(x) - 0.95, 0),
    lambda x: jax.nn.relu(x.mean(keepdims=True) - 0.5) * x,
  ],
  ids=["near the ends", "of bright images"],
)
def test_a_function_may_be_flat_at_most_images(function):
  assert operators.nonlinear(function, (8, 8, 1)).output_shape == (8, 8, 1)


def test_phases_are_lost():
  operator = operators.phase_retrieval((16, 16, 1), oversampling=2.0)
  assert operator.measurement_shape == (24, 24, 1)
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
  turned = x[:, ::-1, ::-1]
  np.testing.assert_allclose(
    operator.forward(x), operator.forward(turned), atol=1e-5
  )
  padded = np.pad(np.asarray(x[0, ..., 0]) / 2 + 0.5, 4)
  expected = np.abs(np.fft.fft2(padded)) / 24
  np.testing.assert_allclose(
    operator.forward(x)[0, ..., 0], expected, atol=1e-5
  )
  assert operator == operators.phase_retrieval((16, 16, 1))
  with refused(ValueError, "oversampling must be at most 64, got 1000000000"):
    operators.phase_retrieval((8, 8, 1), oversampling=1e9)
  with refused(ValueError, "oversampling must be positive and finite, got 0"):
    operators.phase_retrieval((16, 16, 1), oversampling=0)
