"""How many programs `run` compiles: one for equal settings, however built."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import baselines, sampling
from posterior_jax.nfc_sampler import (
  Schedule,
  Sigma,
  compose,
  levels_of,
  parts_of,
)
from posterior_jax.priors import GaussianPrior
from tests.oracles import refused

SIDE = 8
BUILDERS = [
  build
  for name, build in inspect.getmembers(baselines, inspect.isfunction)
  if f"{build.__module__}".endswith("_sampler")
]


def _prior(exponent=2.0):
  spectrum = pj.priors.power_law_spectrum(SIDE, SIDE, exponent=exponent)
  return pj.priors.gaussian_prior(spectrum)


def _observation(seed, noise_std=0.1):
  operator = pj.operators.gaussian_blur((SIDE, SIDE, 1), size=3, std=1.0)
  y = jax.random.normal(jax.random.key(seed), (1, SIDE, SIDE, 1))
  return pj.Observation(y, operator, noise_std)


def _nfc(prior: GaussianPrior, **settings):
  config = pj.NFCConfig.calibrated(levels=3, **settings)
  return pj.nfc(config, spectrum=prior.spectrum)


def test_what_is_built_again_meets_the_same_program():
  """New data, noise, keys, priors and spectra compile nothing."""
  jax.clear_caches()  # the file before this one may have met the program
  before, config = sampling._run._cache_size(), pj.NFCConfig(levels=2)
  found = []
  for i in range(4):
    prior = _prior(2.0 + 0.1 * i)
    case = prior.denoise, _observation(i, 0.1 + 0.01 * i), jax.random.key(i)
    x, _ = pj.run(pj.nfc(config, spectrum=prior.spectrum), *case)
    found.append(np.asarray(x))
  assert sampling._run._cache_size() == before + 1
  assert len({x.tobytes() for x in found}) == 4
  # The spectrum is that of the call, not of the program.
  x, _ = pj.run(pj.nfc(config, spectrum=4 * prior.spectrum), *case)
  assert np.abs(x - found[-1]).max() > 1e-3
  assert sampling._run._cache_size() == before + 1


@pytest.mark.slow
def test_a_spectrum_is_the_same_as_an_operand_and_as_a_constant():
  prior, config = _prior(), pj.NFCConfig(levels=2)
  case = prior.denoise, _observation(0), jax.random.key(0)
  own = compose(parts_of(config, prior.spectrum), levels_of(config))
  found, _ = pj.run(pj.nfc(config, spectrum=prior.spectrum), *case)
  expected, _ = pj.run(own, *case)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_recorded_and_streamed_are_as_equal_as_what_they_wrap():
  def kind(sampler):
    return jax.tree.structure((sampler.init, sampler.step))

  def one(step, info):
    del step, info

  prior = _prior()
  for wrap in (
    pj.recorded,
    lambda sampler: pj.streamed(sampler, one),
    lambda sampler: pj.recorded(pj.streamed(sampler, one)),
  ):
    assert kind(wrap(_nfc(prior))) == kind(wrap(_nfc(prior)))
    assert kind(wrap(_nfc(prior))) != kind(_nfc(prior))
    assert kind(wrap(_nfc(prior))) != kind(
      wrap(_nfc(prior, inner_noise_std=0.1))
    )
  other = pj.streamed(_nfc(prior), lambda step, info: None)
  assert kind(other) != kind(pj.streamed(_nfc(prior), one))


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_baselines_of_equal_settings_are_equal(build):
  config_type = inspect.signature(build).parameters["config"].annotation
  config = config_type.published()

  def kind(config):
    return jax.tree.structure(build(config)[:2])

  assert kind(config) == kind(config_type.published())
  assert jax.tree.structure(build()[:2]) == kind(config)
  assert kind(config) != kind(dataclasses.replace(config, levels=7))


@pytest.mark.parametrize(
  "build", [pj.nfc, *BUILDERS], ids=lambda build: build.__name__
)
def test_settings_of_another_kind_are_refused(build):
  """Those of another sampler, a class, words, None; as a keyword too."""
  kind = inspect.signature(build).parameters["config"].annotation
  other = baselines.DPSConfig if kind is pj.NFCConfig else pj.NFCConfig
  words = f"config must be an instance of {kind.__name__}, got"
  for wrong in (other(), kind, "motion_blur", None):
    with refused(TypeError, f"{words} {type(wrong).__name__}"):
      build(wrong)
  with refused(TypeError, f"{words} NoneType"):
    build(config=None)


def test_all_baselines_are_there():
  assert len(BUILDERS) == 13


def test_what_a_builder_refuses_is_refused_at_once():
  with refused(ValueError, "spectrum is needed"):
    pj.nfc(pj.NFCConfig.calibrated(levels=3))
  with refused(ValueError, "must be positive and finite"):
    pj.nfc(pj.NFCConfig.calibrated(levels=3), spectrum=jnp.zeros((8, 8)))


def _by_width(value):
  schedule = Schedule(sigma_max=1.0)
  width = Sigma(factor=value)
  return pj.nfc(pj.NFCConfig(levels=2, schedule=schedule, width=width))


def _dps(value):
  return baselines.dps(baselines.DPSConfig(levels=2, scale=value))


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  "build", [_by_width, pytest.param(_dps, marks=pytest.mark.slow)]
)
def test_traced_settings_leave_nothing_behind(build):
  """Two programs that trace a setting, and runs by plain numbers after them."""
  case = _prior().denoise, _observation(0), jax.random.key(0)

  def last(value):
    return pj.run(build(value), *case)[0]

  first = jax.jit(last)(0.5)
  second = jax.jit(lambda value: last(2 * value))(0.5)
  # A solve is exact to 1e-4.
  np.testing.assert_allclose(last(0.5), first, atol=1e-4)
  np.testing.assert_allclose(last(1.0), second, atol=1e-4)
  assert np.abs(np.asarray(first - second)).max() > 1e-2
