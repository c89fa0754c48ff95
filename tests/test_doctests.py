"""The examples in the docstrings of every public name do what they say."""

import doctest
import inspect
import sys
import types

import jax.numpy as jnp
import pytest

import neumann_jax
import posterior_jax

PACKAGES = (neumann_jax, posterior_jax)
# Public functions that must show an example.
SHOWN = (
  "neumann_jax.InverseSpec",
  "neumann_jax.certify",
  "neumann_jax.chunk_matrices",
  "neumann_jax.envelope",
  "neumann_jax.gated_delta_recurrent",
  "neumann_jax.gated_delta_rule",
  "neumann_jax.gated_delta_step",
  "neumann_jax.inverse",
  "neumann_jax.plan",
  "neumann_jax.wy_representation",
)


def _public():
  """Functions and classes that the packages and their modules export."""
  found = {}
  for package in PACKAGES:
    for name in package.__all__:
      value = getattr(package, name)
      path = f"{package.__name__}.{name}"
      if not isinstance(value, types.ModuleType):
        found[path] = value
        continue
      for inner in getattr(value, "__all__", ()):
        found[f"{path}.{inner}"] = getattr(value, inner)
  return {k: v for k, v in found.items() if callable(v)}


PUBLIC = _public()


def _examples(path):
  """The examples of a name, in the globals of the module that defines it."""
  value = PUBLIC[path]
  module = sys.modules[value.__module__]
  finder = doctest.DocTestFinder(recurse=inspect.isclass(value))
  names = dict(vars(module)) | {"jnp": jnp}
  return [
    test
    for test in finder.find(value, path, module=module, globs=names)
    if test.examples
  ]


EXAMPLES = {path: tests for path in PUBLIC if (tests := _examples(path))}


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_do_what_they_say(path):
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  said = []
  for test in EXAMPLES[path]:
    runner.run(test, out=said.append)
  assert runner.failures == 0 < runner.tries, "".join(said)


@pytest.mark.parametrize("path", SHOWN)
def test_the_core_has_examples(path):
  assert path in EXAMPLES
