"""What holds of every baseline: shapes, bits, traces, counts, refusals."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import Observation, baselines, operators, priors, run
from tests import oracles

SHAPE = (8, 8, 1)
METHODS = [name for name in baselines.__all__ if name.islower()]
CONFIGS = {
  name: next(
    getattr(baselines, other)
    for other in baselines.__all__
    if other.lower() == name + "config"
  )
  for name in METHODS
}
LEVELS = 3
SMALL = {"daps": {"inner_steps": 4}, "sitcom": {"steps": 4, "stop": 0.0}}
# Calls of the denoiser and products with its Jacobian, of a step.
COUNTS = {
  "adamdps": (1, 1),
  "dps": (1, 1),
  "fgps": (1, 1),
  "pigdm": (1, 1),
  "mmps": (1, 1),
  "daps": (5, 0),
  "fastdips": (1, 0),
  "sitcom": (4, 4),
  "diffpir": (1, 0),
  "ddrm": (1, 0),
  "ddnm": (1, 0),
  "reddiff": (1, 0),
}


def observe(operator, seed=0):
  prior = priors.gaussian_prior(priors.power_law_spectrum(*SHAPE[:2]))
  keys = jax.random.split(jax.random.key(seed))
  clean = operator.forward(prior.sample(keys[0], (2,), channels=1))
  noise = 0.05 * jax.random.normal(keys[1], clean.shape)
  return Observation(clean + noise, operator, 0.05 * (1 + seed))


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(
      name, marks=[] if name in ("dps", "diffpir") else [pytest.mark.slow]
    )
    for name in METHODS
  ],
)
def test_samples_are_reproducible_and_new_data_does_not_retrace(name):
  spectrum = priors.power_law_spectrum(*SHAPE[:2])
  traces = []

  def denoise(x, sigma, spectrum):
    traces.append(x.shape)
    return priors.gaussian_prior(spectrum).denoise(x, sigma)

  config = CONFIGS[name].published(levels=LEVELS, **SMALL.get(name, {}))
  sampler = getattr(baselines, name)(config)

  def draw(mask, key, scale=1.0):
    return run(
      sampler,
      jax.tree_util.Partial(denoise, spectrum=scale * spectrum),
      observe(operators.random_inpainting(SHAPE, fraction=0.5, seed=mask)),
      jax.random.key(key),
      num_samples=3,
    )

  samples, info = draw(0, 0)
  chex.assert_shape(samples, (3, 2, *SHAPE))
  chex.assert_type(samples, jnp.float32)
  chex.assert_tree_all_finite((samples, info))
  chex.assert_shape(info.sigma, (LEVELS,))
  assert (jnp.diff(info.sigma) < 0).all()
  chex.assert_shape(info.residual, (LEVELS, 3, 2))
  chex.assert_shape(info.band_energy, (LEVELS, 3, 2, 8))
  count = len(traces)
  assert count >= 1
  np.testing.assert_array_equal(draw(0, 0)[0], samples)
  flat = np.concatenate([samples, draw(0, 1)[0], draw(1, 0, 1.5)[0]])
  flat = flat.reshape(len(flat) * 2, -1)
  far = np.abs(flat[:, None] - flat).max(-1) + np.eye(len(flat))
  assert far.min() > 0.02, far  # keys, samples, observations, spectra differ
  assert len(traces) == count
  if name in COUNTS:
    for found, expected in zip((info.calls, info.products), COUNTS[name]):
      np.testing.assert_array_equal(found, np.full(LEVELS, expected))


@pytest.mark.parametrize("name", METHODS)
def test_settings(name):
  """Named ones are valid for every task; wrong ones are one sentence."""
  config = CONFIGS[name]
  config()
  assert config.published() == config.published(None)
  assert config.tuned(levels=7).levels == 7
  for task in baselines.TASKS:
    assert config.published(task, levels=9).levels == 9
  with oracles.refused(ValueError, "task must be one of super_resolution, "):
    config.published("deblur")
  with oracles.refused(ValueError, r"levels must lie in \[1, 10*\], got 0"):
    config(levels=0)
  with oracles.refused(ValueError, "levels must be an integer, got 2.5"):
    config.tuned(levels=2.5)
  for field in dataclasses.fields(config):
    if field.type in (int, float):
      with oracles.refused(ValueError, f"{field.name} must "):
        config(**{field.name: -1})
      with oracles.refused(ValueError, f"{field.name} must "):
        config(**{field.name: float("nan")})


@pytest.mark.parametrize("name", METHODS)
def test_a_denoiser_of_another_shape_is_refused(name):
  sampler = getattr(baselines, name)(CONFIGS[name].published(levels=2))
  observation = observe(operators.random_inpainting(SHAPE))
  with oracles.refused(ValueError, "denoise must return images of shape"):
    run(sampler, lambda x, sigma: x[:1], observation, jax.random.key(0))


PUBLISHED = {
  ("adamdps", None): dict(
    levels=100, first_decay=0.9, second_decay=0.995, clip=True
  ),
  ("adamdps", "box_inpainting"): dict(scale=0.047, first_decay=0.77),
  ("adamdps", "motion_blur"): dict(scale=0.05, second_decay=0.56),
  ("dps", None): dict(levels=1000, scale=0.3, clip=True),
  ("dps", "box_inpainting"): dict(scale=0.5),
  ("dps", "random_inpainting"): dict(scale=0.5),
  ("dps", "motion_blur"): dict(scale=0.3),
  ("fgps", "motion_blur"): dict(levels=1000, scale_start=5, scale_end=1),
  ("fgps", "gaussian_blur"): dict(scale_start=3, scale_end=0.6),
  ("pigdm", None): dict(levels=100, eta=1, data_std=1, weight="adaptive"),
  ("mmps", None): dict(iterations=1, eta=1),
  ("daps", "super_resolution"): dict(
    levels=200, step_size=1e-4, inner="langevin"
  ),
  ("daps", "box_inpainting"): dict(predictor_steps=5, step_size=5e-5),
  ("daps", "motion_blur"): dict(inner_steps=100, step_size=5e-5),
  ("sitcom", None): dict(levels=20, steps=30, rate=0.02, anchor=0.0),
  ("fastdips", None): dict(
    levels=75, sigma_max=100, sigma_min=0.1, penalty=0.5
  ),
  ("fastdips", "super_resolution"): dict(levels=75, iterations=3, steps=1),
  ("fastdips", "motion_blur"): dict(levels=50, iterations=3, steps=2),
  ("diffpir", "motion_blur"): dict(levels=100, weight=7 / 4, renewal=0.3),
  ("diffpir", "super_resolution"): dict(weight=7 / 4, renewal=0.25),
  ("diffpir", "box_inpainting"): dict(weight=1 / 4, renewal=1.0),
  ("ddrm", None): dict(levels=20, eta=0.85, eta_data=1.0),
  ("ddnm", None): dict(levels=100, eta=0.85),
  ("reddiff", None): dict(levels=1000, weight=0.25, learning_rate=0.1),
  ("pnpdm", None): dict(levels=100, coupling_max=10, coupling_min=0.3),
  ("pnpdm", "motion_blur"): dict(decay=0.9, nodes=100, solver="euler"),
}


@pytest.mark.parametrize(("name", "task"), PUBLISHED)
def test_published_settings_are_those_published(name, task):
  config = CONFIGS[name].published(task)
  for field, value in PUBLISHED[name, task].items():
    assert getattr(config, field) == value, field
