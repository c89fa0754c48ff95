"""The methods and operand formats whose errors are compared."""

from collections.abc import Sequence

from neumann_jax import InverseSpec, QuantSpec

FORMATS: dict[str, dict] = {
  "float32": {},
  "bfloat16": {"precision": "bfloat16"},
  "float16": {"precision": "float16"},
  "INT16": {"quant": QuantSpec(bits=16, scale="dynamic")},
  "INT8": {"quant": QuantSpec(bits=8, scale="dynamic")},
}
ENVELOPE_FORMATS: dict[str, dict] = {
  "INT16 envelope": {"quant": QuantSpec(bits=16, scale="envelope")},
  "INT8 envelope": {"quant": QuantSpec(bits=8, scale="envelope")},
}
PAPER = "banded N3 S8 (paper, C=64)"
_LONG = {"method": "banded", "order": 3, "residual_steps": 16}
METHODS: dict[str, dict] = {
  PAPER: {"method": "banded", "order": 3, "residual_steps": 8},
  "banded N3 S16": _LONG,
  "banded N3 S16, masked each step": _LONG | {"mask_every_step": True},
  "newton": {"method": "newton"},
  "ladder": {"method": "ladder"},
  "newton + refine": {"method": "newton", "refine": 1},
  "ladder + refine": {"method": "ladder", "refine": 1},
  "doubling in 16-blocks + merge": {"method": "doubling", "block": 16},
  "doubling": {"method": "doubling"},
}
Case = tuple[str, str, InverseSpec]  # method, format, spec

PAPER_FORMATS = ("float32", "float16", "INT8")
PAPER_CHUNKS = (32, 64, 128)
FIXED_SCALE = ("newton", "ladder", "newton + refine", "ladder + refine")


def all_cases(formats: Sequence[str] = tuple(FORMATS)) -> list[Case]:
  """Every approximation, in some formats of operands."""
  rows = [("exact solve", "float32", InverseSpec(method="exact"))]
  rows += [
    (method, form, InverseSpec(**METHODS[method], **FORMATS[form]))
    for method in METHODS
    for form in formats
  ]
  rows += [
    (method, form, InverseSpec(**METHODS[method], **ENVELOPE_FORMATS[form]))
    for method in FIXED_SCALE
    for form in ENVELOPE_FORMATS
    if form.removesuffix(" envelope") in formats
  ]
  return rows


def paper_cases(formats: Sequence[str] = PAPER_FORMATS) -> list[Case]:
  """The paper's setting for each chunk length, beside the ladder."""
  return [
    (method, form, InverseSpec(method=method, **FORMATS[form]))
    for method in ("banded", "ladder")
    for form in PAPER_FORMATS
    if form in formats
  ]
