"""How an inverse is written in configs, tables and plots, and read from there.

  METHOD [N3] [S8] [block64] FORMAT [refine]

as "ladder int8-dynamic refine" or "banded N3 S8 float16". `InverseSpec.parse`
and `InverseSpec.name` are the public door.

METHOD is that of `InverseSpec`, or `banded-masked`: `banded` with the band
masked at every step. N is the order, S the residual steps; what is not named
takes the method's default. FORMAT is a precision, or integer codes with their
scale: "int8-dynamic"; `fake-` codes are held in float32, with the same bits.
"""

import re
from typing import TYPE_CHECKING, Any

from neumann_jax.chunk_inverse.integer import QuantSpec

if TYPE_CHECKING:
  from neumann_jax.chunk_inverse.inverse_spec import InverseSpec

_MASKED = "banded-masked"
_FAKE = "fake-"
QUANTS = {
  f"{'' if integer else _FAKE}int{bits}-{scale}": QuantSpec(
    bits, scale, integer
  )
  for integer in (True, False)
  for bits in (4, 8, 16)
  for scale in ("dynamic", "envelope")
}
_WORDS = re.compile(
  r"(?P<method>\S+)"
  r"( N(?P<order>\d+))?"
  r"( S(?P<residual_steps>\d+))?"
  r"( block(?P<block>\d+))?"
  r" (?P<format>\S+)"
  r"(?P<refine> refine)?"
)


def fields(
  name: str, *, methods: tuple[str, ...], precisions: tuple[str, ...]
) -> dict[str, Any]:
  """The fields of `InverseSpec` that a name stands for.

  Args:
    name: as above.
    methods: those that exist.
    precisions: likewise.

  Raises:
    ValueError: for a name that is not of this form.
  """
  match = _WORDS.fullmatch(name) if isinstance(name, str) else None
  found = match.groupdict() if match else {}
  method, form = found.get("method"), found.get("format")
  if method not in (*methods, _MASKED) or form not in (*precisions, *QUANTS):
    raise ValueError(
      "a spec is named METHOD [N3] [S8] [block64] FORMAT [refine], "
      f"METHOD one of {', '.join((*methods, _MASKED))} and FORMAT one of "
      f"{', '.join((*precisions, *QUANTS))}; got {name!r}"
    )
  numbers = {
    field: int(found[field])
    for field in ("order", "residual_steps", "block")
    if found[field] is not None
  }
  return numbers | {
    "method": "banded" if method == _MASKED else method,
    "mask_every_step": method == _MASKED,
    "refine": int(found["refine"] is not None),
    **({"quant": QUANTS[form]} if form in QUANTS else {"precision": form}),
  }


def name_of(spec: "InverseSpec") -> str:
  """The name that `fields` reads as this spec."""
  refine = ["refine"] * spec.refine
  return " ".join([_settings(spec), format_name(spec), *refine])


def without_format(spec: "InverseSpec") -> str:
  """The method and its settings: "newton N3 S4", "ladder refine"."""
  return " ".join([_settings(spec), *["refine"] * spec.refine])


def format_name(spec: "InverseSpec") -> str:
  """The operands' format: "bfloat16", "int8-dynamic", "fake-int4-envelope"."""
  if spec.quant is None:
    return spec.precision
  return next(name for name, quant in QUANTS.items() if quant == spec.quant)


def _settings(spec: "InverseSpec") -> str:
  words = [_MASKED if spec.mask_every_step else spec.method]
  for letter, value in (
    ("N", spec.order),
    ("S", spec.residual_steps),
    ("block", spec.block),
  ):
    words += [] if value is None else [f"{letter}{value}"]
  return " ".join(words)
