"""Settings and calls that the sampler refuses, in a sentence each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import (
  NFCConfig,
  Observation,
  nfc,
  operators,
  recorded,
  run,
  streamed,
)
from posterior_jax.nfc_sampler import Exact
from tests import oracles
from tests.sampled import CONFIGS, OPERATORS, PAPER, observe, the_prior


@pytest.fixture(scope="module")
def prior():
  return the_prior()


BAD_CONFIGS = {
  "levels": (dict(levels=0), r"levels must lie in \[1, 10000\], got 0"),
  "solver": (
    dict(predictor={"solver": "rk4"}),
    "solver must be one of euler, heun, dpm_solver_2m",
  ),
  "predictor": (dict(predictor="heun"), "must be one of Denoise, Ode; got 'h"),
  "cutoff": (
    dict(band={"mask": {"law": "fast"}}),
    "law must be one of 'step', 'log_sigma', Exponential; got 'fast'",
  ),
  "cutoff_start": (
    dict(band={"mask": {"cutoff_start": 0.0}}),
    "cutoff_start must lie in",
  ),
  "blend": (dict(band={"blend_start": 1.5}), "blend_start must lie in"),
  "no blend": (dict(band={"blend_start": 0.0}), "no band is band=None"),
  "nan": (dict(schedule={"rho": float("nan")}), "rho must lie in"),
  "sigma": (dict(schedule={"sigma_min": 200.0}), "sigma_min must lie in"),
  "step": (dict(inner={"step_size": 0.0}), "step_size must be positive"),
  "tau": (dict(inner_noise_std=-1.0), "inner_noise_std must be positive"),
  "haar": (dict(fusion={"levels": 4}), "levels must lie in"),
  "three": (dict(fusion={"high": (0.2, 0.2, 2.0)}), "high must lie in"),
  "two": (dict(fusion={"high": (0.2, 0.2)}), "high must be a number or 3 of"),
  "power": (dict(band={"power": 3}), "power must be one of 1, 2; got 3"),
  "end": (dict(band={"blend_end": -0.1}), "blend_end must lie in"),
  "wavelet": (
    dict(fusion={"wavelet": "db3"}),
    "wavelet must be one of haar, db2, bior4.4",
  ),
  "unlock": (
    dict(fusion={"unlock": "late"}),
    "unlock must be one of product, clip, base",
  ),
  "whole": (dict(levels=2.5), "levels must be an integer, got 2.5"),
  "switch": (dict(halved_misfit="no"), "halved_misfit must be True or False"),
  "not its own": (
    dict(width={"inflation": 2.0}),
    "inflation is no field of Sigma, which has factor",
  ),
  "a word": (dict(width="sigma"), "width must be one of Sigma, Spectrum, Pro"),
}


@pytest.mark.parametrize("name", ["max_iterations", "root_steps"])
def test_counts_that_may_be_open_are_whole(name):
  assert getattr(Exact(**{name: None}), name) is None
  with pytest.raises(ValueError, match=f"{name} must be an integer, got 6.5"):
    Exact(**{name: 6.5})


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_settings_are_one_sentence(case):
  changes, sentence = BAD_CONFIGS[case]
  with pytest.raises(ValueError, match=sentence) as caught:
    PAPER.replace(**changes)
  assert "\n" not in str(caught.value)


BAD_SPECTRA = {
  "missing": (lambda s: None, "spectrum is needed by"),
  "rank": (lambda s: s[0], r"spectrum must have shape \[H, W\]"),
  "negative": (lambda s: -s, "spectrum must be positive and finite"),
  "not even": (lambda s: s.at[0, 1].set(9.0), "must be even"),
}


@pytest.mark.parametrize("case", BAD_SPECTRA)
def test_bad_spectra_are_one_sentence(case, prior):
  change, sentence = BAD_SPECTRA[case]
  with pytest.raises(ValueError, match=sentence):
    nfc(NFCConfig(), spectrum=change(prior.spectrum))


def refuse(prior, sentence, error=ValueError, **changes):
  """The sentence must come before the denoiser is ever traced."""
  called = []

  def denoise(x, sigma):
    called.append(1)
    return x

  arguments = {
    "sampler": nfc(CONFIGS["calibrated"], spectrum=prior.spectrum),
    "denoise": denoise,
    "observation": observe(OPERATORS["blur"](), prior),
    "key": jax.random.key(0),
    "num_samples": 1,
  } | changes
  with pytest.raises(error, match=sentence) as caught:
    run(**arguments)
  assert "\n" not in str(caught.value)
  assert not called


def test_bad_calls_are_one_sentence(prior):
  good = observe(OPERATORS["blur"](), prior)

  def changed(**fields):
    return {"observation": dataclasses.replace(good, **fields)}

  refuse(prior, "num_samples must be at least 1", num_samples=0)
  refuse(prior, "must be an integer", TypeError, num_samples=2.5)
  refuse(prior, "integer, got True", TypeError, num_samples=True)
  three = (good.y, good.operator, good.noise_std)
  refuse(prior, "an Observation.*, got tuple", TypeError, observation=three)
  refuse(prior, "y must be an array", TypeError, **changed(y=[1.0]))
  whole = np.zeros(good.y.shape, np.uint8)
  refuse(prior, "y must be floating point", TypeError, **changed(y=whole))
  refuse(prior, "at least one observation", **changed(y=good.y[:0]))
  refuse(prior, "denoise must be callable", TypeError, denoise=3)
  one = r"key must be one key, as jax\.random\.key\(0\), got "
  refuse(prior, one + "int", TypeError, key=0)
  keys = jax.random.split(jax.random.key(0))
  refuse(prior, one + r"key<fry> of shape \(2,\)", TypeError, key=keys)
  refuse(prior, one + "float32", TypeError, key=jnp.zeros(2))
  config = CONFIGS["calibrated"]
  refuse(prior, "sampler must be a Sampler", TypeError, sampler=config)
  with pytest.raises(
    TypeError, match="config must be an instance of NFCConfig, got method"
  ):
    nfc(NFCConfig.calibrated)
  refuse(prior, r"y must have shape \[N, 16", **changed(y=good.y[0]))
  refuse(prior, r"y must have shape", **changed(y=good.y[:, :8]))
  refuse(prior, "y must be finite", **changed(y=good.y.at[0].set(jnp.nan)))
  sentence = "noise_std must be a positive"
  for noise in (0.0, -1.0, np.nan, "0.1"):
    with oracles.refused(ValueError, sentence):
      changed(noise_std=noise)
  # Arrays may still be computed when an observation is made.
  for noise in (jnp.zeros(()), jnp.asarray(-1.0), np.ones(3), None):
    refuse(prior, sentence, **changed(noise_std=noise))
  refuse(
    prior,
    "operator must be a posterior_jax Operator",
    TypeError,
    **changed(operator=lambda x: x),
  )


def test_denoiser_of_another_shape(prior):
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["blur"](), prior)
  for wrong in (lambda x, sigma: x[:1], lambda x, sigma: (x, x)):
    with pytest.raises(ValueError, match="denoise must return images"):
      run(sampler, wrong, observation, jax.random.key(0))


@pytest.mark.parametrize(
  "wrong, words",
  [
    (lambda x, sigma: x.astype(int), "denoise must return floating point, got"),
    (lambda x, sigma: np.asarray(x), "denoise must consist of JAX operations"),
    (lambda x, sigma: x if sigma[0] > 1 else -x, "jnp.where in place of if"),
  ],
  ids=("whole numbers", "NumPy", "if"),
)
def test_denoiser_of_another_kind(prior, wrong, words):
  """Whole numbers were taken, and pixels became hundreds."""
  sampler = nfc(CONFIGS["calibrated"], spectrum=prior.spectrum)
  observation = observe(OPERATORS["blur"](), prior)
  with oracles.refused(ValueError, words):
    run(sampler, wrong, observation, jax.random.key(0))


@pytest.mark.parametrize(
  "wrap", [recorded, functools.partial(streamed, callback=print)]
)
def test_what_is_wrapped_is_a_sampler(wrap):
  with oracles.refused(TypeError, "sampler must be a Sampler, as nfc returns"):
    wrap(lambda: None)


def test_images_that_do_not_fit_the_settings(prior):
  """A spectrum of another size, and an odd image under Haar weights."""
  wide = (18, 16, 1)
  operator = operators.gaussian_blur(wide, size=5, std=1.0)
  observation = Observation(jnp.zeros((1, *wide)), operator, 0.1)
  refuse(
    prior, r"spectrum .*must be that of the image", observation=observation
  )
  odd = (15, 16, 1)
  operator = operators.gaussian_blur(odd, size=5, std=1.0)
  sampler = nfc(PAPER.replace(fusion={"levels": 2}))
  refuse(
    prior,
    "divisible by 4",
    sampler=sampler,
    observation=Observation(jnp.zeros((1, *odd)), operator, 0.1),
  )
