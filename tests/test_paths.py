"""What is no path is refused by the argument's name."""

import inspect

import pytest

from neumann_jax import checkpoint, generation, shipped, tuning
from neumann_jax.checkpoint import orbax
from posterior_jax import metrics, priors

NAMED = {
  checkpoint.load: "path",
  checkpoint.save: "path",
  orbax.restore_orbax: "path",
  orbax.save_orbax: "path",
  tuning.load_adapters: "path",
  shipped.load_model: "manifest",
  metrics.load_dists: "path",
  metrics.load_lpips: "path",
  priors.load_adm: "path",
  priors.load_diffusers: "path",
  priors.load_prior: "manifest",
}


@pytest.mark.parametrize("wrong", [None, 3, b"bytes"])
@pytest.mark.parametrize("reads", NAMED, ids=lambda f: f.__qualname__)
def test_what_is_no_path_is_refused_by_name(reads, wrong):
  needed = [
    name
    for name, parameter in inspect.signature(reads).parameters.items()
    if parameter.default is parameter.empty
  ]
  with pytest.raises(TypeError, match=f"^{NAMED[reads]} must be a path, got"):
    reads(**dict.fromkeys(needed) | {NAMED[reads]: wrong})


def test_a_tokenizer_is_of_a_path_or_of_none():
  with pytest.raises(TypeError, match=r"^checkpoint must be a path, got 3"):
    generation.load_tokenizer(3, 300)
