"""What is no number, or out of range, is named before anything is compiled."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import baselines, fields, operators, priors
from tests.oracles import refused

SHAPE = (16, 16, 3)
CONFIGS = [
  found
  for name in baselines.__all__
  if inspect.isclass(found := getattr(baselines, name))
  and hasattr(found, "tuned")
]


def _observation(noise_std):
  operator = operators.random_inpainting(SHAPE)
  return pj.Observation(jnp.zeros((1, *SHAPE)), operator, noise_std)


@pytest.mark.parametrize(
  "noise_std", [-0.1, 0.0, float("nan"), float("inf"), "a", np.float32(-1)]
)
def test_an_observation_has_noise(noise_std):
  with refused(ValueError, "noise_std must be a positive, finite scalar"):
    _observation(noise_std)


def test_an_observation_is_a_pytree_of_anything():
  """JAX puts axes, None and tracers where the noise stands."""
  given = _observation(jnp.float32(0.1))
  axes = pj.Observation(0, None, -1)
  assert axes.noise_std == -1
  leaves, structure = jax.tree.flatten(given)
  jax.tree.unflatten(structure, [None] * len(leaves))
  noise = jax.jit(lambda each: each.noise_std)(given)
  assert noise == jnp.float32(0.1)


def test_every_baseline_has_both_settings():
  assert len(CONFIGS) == 13


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: each.__name__)
def test_settings_name_what_they_do_not_know(config):
  for build in (config.tuned, config.published):
    assert build("motion_blur") == build(task="motion_blur")
    with refused(
      ValueError, "task must be one of super_resolution, .* 'motion'"
    ):
      build("motion")
    words = f"colour is no field of {config.__name__}, which has levels"
    with refused(ValueError, words):
      build(colour=1)
    assert build(levels=7).levels == 7
  assert config.tuned("super_resolution") == config.tuned()


def _blur(**how):
  return operators.gaussian_blur(SHAPE, **({"size": 5, "std": 1.0} | how))


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: _blur(size="5"), "size must be an integer, got '5'"),
    (lambda: _blur(size=5.0), "size must be an integer, got 5.0"),
    (lambda: _blur(std="1"), "std must be a number, got '1'"),
    (lambda: _blur(std=np.inf), "std must be positive and finite, got inf"),
    (
      lambda: operators.blur(SHAPE, "k.png"),
      "kernel must be an array of real numbers, got 'k.png'",
    ),
    (
      lambda: operators.super_resolution(SHAPE, factor=1.5),
      "factor must be an integer, got 1.5",
    ),
    (
      lambda: operators.random_inpainting(SHAPE, fraction="a"),
      "fraction must be a number, got 'a'",
    ),
    (
      lambda: operators.random_inpainting(SHAPE, seed=-1),
      "seed must be at least 0, got -1",
    ),
    (
      lambda: operators.check_operator(_blur(), seed=-1),
      "seed must be at least 0, got -1",
    ),
    (
      lambda: pj.tiled(lambda x, s: x, tile=16, overlap=4.5),
      "overlap must be an integer, got 4.5",
    ),
    (
      lambda: pj.tiled(lambda x, s: x, tile=16, overlap=4, margin=0.5),
      "margin must be an integer, got 0.5",
    ),
    (
      lambda: operators.inpainting(SHAPE, "m.png"),
      "mask must be an array of real numbers, got 'm.png'",
    ),
    (
      lambda: operators.box_inpainting(SHAPE, size=4.5),
      "size must be an integer, got 4.5",
    ),
    (
      lambda: operators.dense((4, 4, 1), 1j * np.ones((3, 16))),
      "matrix must be an array of real numbers, got one of complex128",
    ),
    (
      lambda: priors.gaussian_prior("a"),
      "spectrum must be an array of real numbers, got 'a'",
    ),
    (
      lambda: priors.gaussian_prior(np.ones((8, 8)), "a"),
      "mean must be an array of real numbers, got 'a'",
    ),
    (
      lambda: priors.power_law_spectrum(0, 16),
      "height must be at least 1, got 0",
    ),
    (
      lambda: priors.power_law_spectrum(16, "a"),
      "width must be an integer, got 'a'",
    ),
    (
      lambda: priors.estimate_spectrum(["a"], 16, 16),
      "every image must be an array of real numbers, got 'a'",
    ),
    (
      lambda: pj.padded(lambda x, s: x, multiple="8"),
      "multiple must be an integer, got '8'",
    ),
    (
      lambda: pj.metrics.psnr(
        jnp.zeros(SHAPE), jnp.zeros(SHAPE), data_range=255
      ),
      r"data_range must be \(low, high\), got 255",
    ),
  ],
)
def test_constructors_name_what_is_no_number(call, words):
  with refused(ValueError, words):
    call()


@pytest.mark.parametrize(
  ("solver", "words"),
  [
    ({"tolerance": -1.0}, r"tolerance must lie in \(0, 1\), got -1"),
    ({"max_iterations": -1}, "max_iterations must be at least 1, got -1"),
    ({"max_iterations": 2.5}, "max_iterations must be an integer, got 2.5"),
  ],
)
def test_a_solve_has_a_tolerance(solver, words):
  prior = priors.gaussian_prior(priors.power_law_spectrum(16, 16))
  with refused(ValueError, words):
    priors.posterior_mean(prior, _observation(0.1), **solver)


def test_arrays_of_every_real_kind_are_taken():
  for dtype in (bool, np.int8, np.float16, jnp.bfloat16):
    assert fields.array("a", jnp.ones(3, dtype)).shape == (3,)
