"""Examples in the docstrings of public names run as they stand."""

import doctest
import importlib
import inspect

import jax.numpy as jnp
import pytest

from tests import models

PACKAGES = ("neumann_jax", "posterior_jax")
# Not in a package's __all__, but documented paths of their own.
ROOMS = (
  "neumann_jax.checkpoint",
  "neumann_jax.generation",
  "neumann_jax.sharding",
  "neumann_jax.shipped",
  "neumann_jax.weight_quantization",
  "posterior_jax.nfc_sampler",
)
# The contract: without an example there each of these would say less.
WITH_EXAMPLES = {
  "neumann_jax": """
    InverseSpec certify chunk_matrices envelope gated_delta_recurrent
    gated_delta_rule gated_delta_step inverse plan wy_representation
    ModelConfig Execution LanguageModel GatedDeltaNet Cache ModelCache generate
    SamplingSpec checkpoint.load checkpoint.save generation.stream
    sharding.make_mesh sharding.place shipped.language_model
    weight_quantization.quantize_weights
  """.split(),
  "posterior_jax": """
    nfc NFCConfig NFCConfig.paper NFCConfig.restoration NFCConfig.calibrated
    NFCConfig.fast run tiled padded recorded streamed Observation
    operators.super_resolution
    operators.box_inpainting operators.random_inpainting operators.inpainting
    operators.gaussian_blur operators.motion_blur operators.blur operators.dense
    priors.gaussian_prior priors.gaussian_mixture priors.mixture_posterior
    priors.power_law_spectrum priors.unet_prior priors.photo_prior
    baselines.dps metrics.psnr metrics.ssim metrics.variance_ratio
    metrics.coverage metrics.crps metrics.flip metrics.flip_map
    metrics.hpd_coverage metrics.sliced_wasserstein nfc_sampler.compose
  """.split(),
}


def _public(name):
  """(dotted name, object) of what a package exports, rooms included."""
  module = importlib.import_module(name)
  exported = getattr(module, "__all__", None)
  names = exported or [n for n in vars(module) if not n.startswith("_")]
  for one in names:
    found = getattr(module, one)
    if not inspect.ismodule(found):
      yield f"{name}.{one}", found
    elif exported:  # a room that the package names, not what it imports
      yield from _public(found.__name__)


def _inherited(name, found):
  """(dotted name, method) of what a class has from bases of its package."""
  for base in inspect.getmro(found)[1:] if inspect.isclass(found) else ():
    if base.__module__.startswith(PACKAGES):
      for one in vars(base):
        if not one.startswith("_") and one not in vars(found):
          method = getattr(found, one)
          yield f"{name}.{one}", getattr(method, "__func__", method)


def _examples():
  finder = doctest.DocTestFinder(exclude_empty=True)
  tests = {}
  for package in (*PACKAGES, *ROOMS):
    for name, found in _public(package):
      if inspect.isclass(found) or inspect.isfunction(found):
        # Only of a class is asked what it inherits; the finder does not.
        for one, its in [(name, found), *_inherited(name, found)]:
          its = finder.find(its, one, extraglobs={"jnp": jnp})
          tests |= {test.name: test for test in its}
  return {name: test for name, test in tests.items() if test.examples}


EXAMPLES = _examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
  report = []
  runner = doctest.DocTestRunner(
    optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
  )
  with models.drawn_by_numpy():
    outcome = runner.run(EXAMPLES[name], out=report.append)
  assert outcome.attempted and not outcome.failed, "".join(report)


def test_named_ones_have_an_example():
  named = {
    f"{package}.{name}"
    for package in WITH_EXAMPLES
    for name in WITH_EXAMPLES[package]
  }
  assert not named - EXAMPLES.keys()
