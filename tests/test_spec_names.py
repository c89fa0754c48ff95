"""The one spelling of inverses: what a name stands for, and the way back."""

import itertools

import pytest

from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import PRECISIONS
from neumann_jax.chunk_inverse.planner import rounding_key
from neumann_jax.chunk_inverse.spec_names import without_format
from tests import oracles

INTEGER = {"integer": True}


@pytest.mark.parametrize(
  "name, spec",
  [
    ("exact float32", InverseSpec("exact")),
    (
      "ladder bfloat16 refine",
      InverseSpec("ladder", precision="bfloat16", refine=1),
    ),
    (
      "ladder int8-dynamic refine",
      InverseSpec(quant=QuantSpec(8, "dynamic", **INTEGER), refine=1),
    ),
    (
      "ladder fake-int4-envelope",
      InverseSpec(quant=QuantSpec(4, "envelope")),
    ),
    (
      "banded N3 S8 float16",
      InverseSpec("banded", 3, 8, precision="float16"),
    ),
    (
      "banded-masked N3 S16 tf32",
      InverseSpec("banded", 3, 16, True, precision="tf32"),
    ),
    (
      "banded N3 S8 block64 int16-envelope",
      InverseSpec("banded", 3, 8, block=64, quant=QuantSpec(16, **INTEGER)),
    ),
    ("newton N1 float32", InverseSpec("newton", order=1)),
    ("newton S0 float32", InverseSpec("newton", residual_steps=0)),
    ("doubling block16 float32", InverseSpec("doubling", block=16)),
  ],
)
def test_a_name_stands_for_a_spec(name, spec):
  assert InverseSpec.parse(name) == spec and spec.name == name


def every_spec():
  """All combinations of fields that an InverseSpec accepts."""
  formats = [{"precision": precision} for precision in PRECISIONS]
  formats += [
    {"quant": QuantSpec(bits, scale, integer)}
    for bits in (4, 8, 16)
    for scale in ("envelope", "dynamic")
    for integer in (False, True)
  ]
  for method, order, steps, masked, block, refine, form in itertools.product(
    ("exact", "banded", "unmasked", "newton", "ladder", "doubling"),
    (None, 1, 12),
    (None, 0, 8),
    (False, True),
    (None, 16),
    (0, 1),
    formats,
  ):
    try:
      yield InverseSpec(method, order, steps, masked, block, refine, **form)
    except ValueError:  # a field that the method ignores
      continue


def test_every_spec_has_a_name_of_its_own():
  specs = list(every_spec())
  names = [spec.name for spec in specs]
  assert len(specs) > 1500 and len(set(names)) == len(specs)
  assert [InverseSpec.parse(name) for name in names] == specs


@pytest.mark.parametrize(
  "name",
  [
    "",
    "ladder",
    "ladder float8",
    "ladder int8",
    "ladder float32 refined",
    "ladder  float32",
    "Ladder float32",
    "banded S8 N3 float32",
    "banded float32 N3",
    "banded N3 N4 float32",
    "ladder float32 refine refine",
    " ladder float32",
    "ladder float32\n",
  ],
)
def test_other_names_are_refused(name):
  with oracles.refused(ValueError, r"a spec is named METHOD \[N3\] \[S8\]"):
    InverseSpec.parse(name)


@pytest.mark.parametrize(
  "name, sentence",
  [
    ("ladder N3 float32", 'order is ignored by method "ladder"'),
    ("exact bfloat16", 'precision is ignored by method "exact"'),
    ("banded N0 S8 float32", "order must be at least 1, got 0"),
    ("newton block48 float32", "block must be a power of two, got 48"),
  ],
)
def test_specs_that_cannot_be_are_refused(name, sentence):
  with oracles.refused(ValueError, sentence):
    InverseSpec.parse(name)


def test_names_without_what_a_table_says_elsewhere():
  spec = InverseSpec.parse("newton N3 S4 fake-int8-envelope refine")
  assert without_format(spec) == "newton N3 S4 refine"
  assert rounding_key(spec) == "newton int8-envelope refine"
