"""How many files a reader opens to follow one level of the sampler."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import posterior_jax as pj
from posterior_jax.nfc_sampler import compose, levels_of, parts_of

ROOT = pathlib.Path(pj.__file__).parent
SPECTRUM = pj.priors.power_law_spectrum(16, 16)
PRIOR = pj.priors.gaussian_prior(SPECTRUM)
# Where the sampler's own mathematics is; beyond it lie numerics, operators,
# the prior, and what a step reports of itself.
METHOD = "nfc_sampler", "likelihood", "denoising"
COMMON = {
  "nfc_sampler/sampler.py",
  "nfc_sampler/from_config.py",
  "nfc_sampler/width.py",
  "nfc_sampler/states.py",
  "denoising/predictor.py",
}
# What a preset's own ideas add.
ADDED = {
  "paper": {
    "likelihood/bands.py",
    "likelihood/gaussian.py",
    "nfc_sampler/fusion.py",
  },
  "restoration": {"likelihood/covariance.py"},
  "fast": {"likelihood/gaussian.py"},
  "perceptual": {"likelihood/gaussian.py"},
  "guided": {"likelihood/covariance.py"},
  "calibrated": {"likelihood/gaussian.py"},
}


def _entered(config):
  """Files of the method whose functions one step calls, while it is traced."""
  operator = pj.operators.gaussian_blur((16, 16, 1), size=3, std=1.0)
  observation = pj.Observation(jnp.zeros((1, 16, 16, 1)), operator, 0.1)
  sampler = compose(parts_of(config, SPECTRUM), levels_of(config))
  state = jax.eval_shape(
    lambda key: sampler.init(key, observation, 1), jax.random.key(0)
  )
  files = set()

  def watch(frame, event, _):
    # Of every call that tracing makes: nothing dear before this.
    if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
      files.add(frame.f_code.co_filename)

  sys.setprofile(watch)
  try:
    jax.make_jaxpr(
      lambda state: sampler.step(
        state, PRIOR.denoise, observation, jax.random.key(1)
      )
    )(state)
  finally:
    sys.setprofile(None)
  found = {pathlib.Path(file).relative_to(ROOT).as_posix() for file in files}
  return {file for file in found if file.split("/")[0] in METHOD}


@pytest.mark.parametrize("preset", ADDED)
def test_a_step_enters_few_files(preset):
  """Six; two more for the band and the wavelets of the published setting.

  It has six verbs (predict, width, band, likelihood, fuse, renoise) with a file
  for each, beside the file that composes them and the one that chooses them:
  with fewer one would hold two of them.
  """
  config = getattr(pj.NFCConfig, preset)(levels=3)
  found = _entered(config)
  assert found == COMMON | ADDED[preset]
  assert len(found) <= 6 + 2 * (preset == "paper")
