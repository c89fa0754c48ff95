"""What is printed of records that hold arrays: a line, whatever their size."""

import dataclasses
import functools
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax.metrics import classifier
from posterior_jax.short_repr import short_repr
from tests.test_loaders import FIXTURES as NETWORKS
from tests.test_perceptual import FIXTURES

PACKAGE = pathlib.Path(pj.__file__).parent
RECORD = (
  r"^@jax\.tree_util\.register_dataclass\n@dataclasses.*\nclass ([A-Z]\w+)"
)
SHAPE = 256, 256, 3


def _records():
  """Every public class whose arrays are leaves."""
  for path in sorted(PACKAGE.rglob("*.py")):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for found in re.findall(RECORD, path.read_text(), re.M):
      yield getattr(importlib.import_module(name), found)


def test_no_record_writes_out_its_arrays():
  records = set(_records())
  assert {pj.metrics.LPIPS, pj.metrics.DISTS, pj.priors.UNetPrior} < records
  assert len(records) >= 21
  for record in records:
    assert record.__repr__ is short_repr, record


def _dists():
  """DISTS of its full size, of zeros."""
  kernels, biases, entering = [], [], 3
  for slice_, leaving in zip(
    classifier.FORMS["vgg"].slices, (64, 128, 256, 512, 512), strict=True
  ):
    for _ in slice_:
      kernels.append(jnp.zeros((3, 3, entering, leaving)))
      biases.append(jnp.zeros(leaving))
      entering = leaving
  return pj.metrics.DISTS(
    jnp.zeros(3),
    jnp.ones(3),
    tuple(kernels),
    tuple(biases),
    *jnp.zeros((2, 3 + 64 + 128 + 256 + 512 + 512)),
  )


BUILT = {
  "lpips": lambda: pj.metrics.load_lpips(FIXTURES / "vgg.pt"),
  "dists": _dists,
  "photo_prior": pj.priors.photo_prior,
  "large": lambda: pj.priors.photo_prior("large"),
  "ddpm": lambda: pj.priors.load_adm(NETWORKS / "adm.pt"),
  "gaussian": lambda: pj.priors.gaussian_prior(np.ones((64, 64))),
  "tiled": lambda: pj.tiled(pj.priors.photo_prior().denoise, tile=128),
  "prepared": lambda: pj.operators.super_resolution(SHAPE).prepared(),
  "inpainting": lambda: pj.operators.random_inpainting(SHAPE),
  "observation": lambda: pj.Observation(
    jnp.zeros((1, *SHAPE)), pj.operators.motion_blur(SHAPE), jnp.ones(())
  ),
  "phase_retrieval": lambda: pj.operators.phase_retrieval((64, 64, 3)),
}


@pytest.mark.parametrize("name", BUILT)
def test_a_line_says_what_it_is(name):
  found = BUILT[name]()
  text = repr(found)
  assert len(text) < 200 and "\n" not in text, text
  assert text.startswith(f"{type(found).__name__}(")
  # Of shapes without numbers as of arrays.
  assert repr(jax.eval_shape(lambda record: record, found)) == text


def test_networks_are_told_apart():
  lpips = repr(pj.metrics.load_lpips(FIXTURES / "alex.pt"))
  assert "network='alex'" in lpips and "numbers in 5 arrays>" in lpips
  small, large = (repr(pj.priors.photo_prior(*n)) for n in ((), ("large",)))
  assert "<5271027 numbers in" in small and "UNetConfig()" in small
  assert "<14" in large and "normed=True" in large


def test_what_is_shown_of_a_field():
  @dataclasses.dataclass
  class Inner:
    rows: np.ndarray
    size: int = 3

  @dataclasses.dataclass
  class Record:
    array: jax.Array
    number: jax.Array
    tree: dict
    inner: Inner
    long: Inner
    function: object
    word: str = "a"
    same: tuple = (1, 2)

  record = Record(
    jnp.zeros((2, 3)),
    jnp.float32(0.25),
    {"a": np.zeros(4), "b": jnp.zeros((5, 2))},
    Inner(np.zeros((2, 2), bool), 4),
    Inner(np.zeros(2), 10**90),
    dataclasses.replace,
    "b",
  )
  assert short_repr(record) == (
    "Record(array=float32[2,3], number=float32[], "
    "tree=<14 numbers in 2 arrays>, inner=Inner(rows=bool[2,2], size=4), "
    "long=Inner(...), function=replace, word='b')"
  )
  shown = []

  @jax.jit
  def traced(prior):
    shown.append(repr(prior))
    return prior.mean

  traced(pj.priors.gaussian_prior(np.ones((8, 8))))
  assert shown == ["GaussianPrior(spectrum=float32[8,8], mean=float32[])"]


def test_a_partial_prints_none_of_the_arrays_it_holds():
  held = functools.partial(lambda big, x: x, np.arange(1000.0))
  text = repr(pj.operators.nonlinear(held, (8, 8, 3)))
  assert text.startswith("Nonlinear(function=") and len(text) < 100
