"""Which approximation of the chunk inverse, in which arithmetic.

`InverseSpec` is what users write; `resolve` fills in the defaults that depend
on the chunk size.
"""

import dataclasses
import typing
from typing import Literal, Self

import numpy as np

from neumann_jax.checks import plain_numbers
from neumann_jax.chunk_inverse import integer, spec_names

Method = Literal["exact", "banded", "unmasked", "newton", "ladder", "doubling"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
PRECISIONS = typing.get_args(Precision)

# Fields that a method reads; setting any other away from its default raises.
_FIELDS = {
  "exact": (),
  "banded": (
    "order",
    "residual_steps",
    "mask_every_step",
    "block",
    "refine",
    "precision",
    "quant",
  ),
  "unmasked": (
    "order",
    "residual_steps",
    "block",
    "refine",
    "precision",
    "quant",
  ),
  "newton": (
    "order",
    "residual_steps",
    "block",
    "refine",
    "precision",
    "quant",
  ),
  "ladder": ("refine", "precision", "quant"),
  "doubling": ("block", "refine", "precision", "quant"),
}
# Methods with a residual series, of at least one term.
_SERIES = ("banded", "unmasked")
# (N, S, block) of the paper; 16 is ours: S (N + 1) = C, which is exact.
_BANDED_DEFAULTS = {
  16: (3, 4, None),
  32: (4, 3, None),
  64: (3, 8, None),
  128: (3, 8, 64),
}


@dataclasses.dataclass(frozen=True)
class InverseSpec:
  """Which approximation of (I + A)^-1, in which arithmetic.

  Attributes:
    method: "exact" (triangular solve), "banded" (arXiv 2606.06034), "newton"
      (masked Newton), "ladder" (2x2 block merges, the safe default), or one of
      two ablations, unsafe on aligned keys: "unmasked" (`banded` without its
      band mask) and "doubling" (log-depth Neumann product).
    order: N >= 1, Neumann order of `banded`, of `unmasked` and of the start of
      `newton`. None takes the method's default.
    residual_steps: S. For `banded` and `unmasked` the number of terms of the
      residual series, >= 1; for `newton` the number of steps, >= 0. None: the
      paper's setting, or as many Newton steps as make it exact.
    mask_every_step: `banded` only: the sequential form that masks every
      intermediate to the band known to be exact.
    block: invert diagonal blocks of this size, then merge them by the ladder.
    refine: 1 adds one correction X + X R, R in float32 at highest precision.
    precision: operand format of every product; sums are float32. "float32"
      means highest precision.
    quant: integer operands instead; `precision` stays "float32" then.

  Raises:
    ValueError: for a value out of range, or a field the method ignores.

  Example:
    >>> InverseSpec("ladder", precision="bfloat16", refine=1).name
    'ladder bfloat16 refine'
    >>> spec = InverseSpec.parse("banded N3 S8 float16")
    >>> spec.order, spec.residual_steps, spec.precision
    (3, 8, 'float16')
  """

  method: Method = "ladder"
  order: int | None = None
  residual_steps: int | None = None
  mask_every_step: bool = False
  block: int | None = None
  refine: int = 0
  precision: Precision = "float32"
  quant: integer.QuantSpec | None = None

  @classmethod
  def parse(cls, name: str) -> Self:
    """The spec of a name: "ladder bfloat16 refine", "banded N3 S8 float16".

    Args:
      name: METHOD [N3] [S8] [block64] FORMAT [refine], see `spec_names`.

    Raises:
      ValueError: for a name that is not of this form, or a spec that cannot be.
    """
    return cls(
      **spec_names.fields(name, methods=tuple(_FIELDS), precisions=PRECISIONS)
    )

  @property
  def name(self) -> str:
    """The name that `parse` reads as this spec."""
    return spec_names.name_of(self)

  def __post_init__(self) -> None:
    plain_numbers(self)
    if self.method not in _FIELDS:
      raise ValueError(
        f"method must be one of {', '.join(_FIELDS)}; got {self.method!r}"
      )
    for field in dataclasses.fields(self)[1:]:
      used = field.name in _FIELDS[self.method]
      if not used and getattr(self, field.name) != field.default:
        raise ValueError(
          f'{field.name} is ignored by method "{self.method}"; leave it at '
          f"{field.default!r}"
        )
    self._check_ranges()

  def _check_ranges(self) -> None:
    if self.precision not in PRECISIONS:
      raise ValueError(
        f"precision must be one of {', '.join(PRECISIONS)}; "
        f"got {self.precision!r}"
      )
    if self.quant is not None and self.precision != "float32":
      raise ValueError(
        "precision must stay 'float32' when quant is set: the operands are "
        f"integers; got {self.precision!r}"
      )
    for name in ("order", "residual_steps"):
      value = getattr(self, name)
      if value is not None and not isinstance(value, int):
        raise ValueError(f"{name} must be an integer or None, got {value!r}")
    if self.quant is not None and not isinstance(self.quant, integer.QuantSpec):
      raise ValueError(
        f"quant must be a QuantSpec, as QuantSpec(8), or None, got "
        f"{self.quant!r}"
      )
    if self.order is not None and self.order < 1:
      raise ValueError(f"order must be at least 1, got {self.order}")
    fewest = 1 if self.method in _SERIES else 0
    if self.residual_steps is not None and self.residual_steps < fewest:
      raise ValueError(
        f"residual_steps must be at least {fewest} for method "
        f'"{self.method}", got {self.residual_steps}'
      )
    if self.refine not in (0, 1):
      raise ValueError(f"refine must be 0 or 1, got {self.refine!r}")
    if self.block is not None:
      check_chunk_size(self.block, name="block")


def check_spec(spec: InverseSpec) -> None:
  """Raises TypeError unless `spec` is an `InverseSpec`."""
  if not isinstance(spec, InverseSpec):
    raise TypeError(
      f"spec must be an InverseSpec, as InverseSpec('ladder'), got {spec!r}"
    )


def check_chunk_size(chunk_size: int, *, name: str = "chunk_size") -> None:
  """Raises ValueError unless `chunk_size` is a power of two, at least 1."""
  whole = isinstance(chunk_size, int | np.integer)
  if not whole or chunk_size < 1 or chunk_size & (chunk_size - 1):
    raise ValueError(f"{name} must be a power of two, got {chunk_size}")


def resolve(spec: InverseSpec, chunk_size: int) -> InverseSpec:
  """Fills in the defaults that depend on the chunk size.

  Args:
    spec: any spec.
    chunk_size: C, a power of two.

  Returns:
    The same spec with `order`, `residual_steps` and `block` set where the
    method reads them; `block` is None when a single block covers the chunk.

  Raises:
    ValueError: if the chunk size is not a power of two, or if `banded` or
      `unmasked` has no default for it and none was given.
  """
  check_spec(spec)
  check_chunk_size(chunk_size)
  order, steps, block = spec.order, spec.residual_steps, spec.block
  if spec.method in _SERIES and None in (order, steps):
    # A block is a chunk of its own to the method.
    size = min(chunk_size, block or chunk_size)
    if size not in _BANDED_DEFAULTS:
      raise ValueError(
        f"order and residual_steps of method {spec.method!r} have no default "
        f"at chunk size {size}, only at 16, 32, 64 and 128: give both"
      )
    defaults = _BANDED_DEFAULTS[size]
    order = defaults[0] if order is None else order
    steps = defaults[1] if steps is None else steps
    block = defaults[2] if block is None else block
  # One block covers the chunk: nothing is merged, and specs that compute the
  # same are equal.
  if block is not None and block >= chunk_size:
    block = None
  if spec.method == "newton":
    order = 1 if order is None else order
    if steps is None:
      steps = newton_steps(block or chunk_size, order)
  return dataclasses.replace(
    spec, order=order, residual_steps=steps, block=block
  )


def newton_steps(chunk_size: int, order: int) -> int:
  """Newton steps after which the band (N+1) 2^steps - 1 covers the chunk."""
  steps = 0
  while (order + 1) << steps < chunk_size:
    steps += 1
  return steps
