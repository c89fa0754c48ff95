"""How the delta rule is computed: its static options, in one record.

A new option is a field here and a use where the rule is computed; `Execution`
of a model holds the record whole, and the layer hands it on.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from neumann_jax.checks import plain_numbers
from neumann_jax.chunk_inverse.gradient import (
  Gradient,
  check,
  check_gradient,
)
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve


@dataclasses.dataclass(frozen=True)
class RuleOptions:
  """How the rule is computed; what it means is the same under any.

  Attributes:
    chunk_size: C, tokens of a chunk, a power of two.
    spec: method and arithmetic of the chunk inverse.
    fused: takes u and w from one kernel that never writes A or T, see
      `gated_delta_rule`. Where all of the rule is a kernel on a TPU, so are a
      layer's convolution, unit norms and gated norm; of any model, the norms
      of the residual stream.
    implementation: "auto", "tpu", "gpu", "xla" or "interpret", which runs the
      kernels of a TPU in jax's simulator of one: for tests, of one device and
      without rematerialisation.
    gradient: of the inverse, "implicit" or "truncated", see
      `neumann_jax.inverse`; a fused rule has the implicit one only.
    sequence_axis: name of the mesh axis that the tokens are split over, inside
      `jax.shard_map` over it; None: they are not split.
    batch_axes: names of the mesh axes that rows are split over, where the
      operands live on a mesh that has them.
    head_axis: the same of heads; None: heads are not split.

  Raises:
    TypeError: for an option of the wrong type.
    ValueError: for a value out of range, options that exclude each other, or a
      kernel that cannot run the inverse, with the reason.
  """

  chunk_size: int = 64
  spec: InverseSpec = InverseSpec()  # noqa: RUF009  (frozen)
  fused: bool = False
  implementation: str = "auto"
  gradient: Gradient = "implicit"
  sequence_axis: str | None = None
  batch_axes: tuple[str, ...] = ("data", "fsdp")
  head_axis: str | None = "tensor"

  def __post_init__(self) -> None:
    """Refuses what no operands could make right."""
    plain_numbers(self)
    object.__setattr__(self, "_inverse", resolve(self.spec, self.chunk_size))
    self.check_dtype(jnp.float32)
    if not isinstance(self.fused, bool):
      raise TypeError(f"fused must be True or False, got {self.fused!r}")
    check_gradient(self.gradient)
    # The kernel never writes T, which the truncated derivative would need.
    if self.fused and self.gradient != "implicit":
      raise ValueError(
        "fused=True has the gradient of the exact inverse only: gradient must "
        f'be "implicit", got {self.gradient!r}'
      )
    axis = self.sequence_axis
    if axis is not None and not isinstance(axis, str):
      raise TypeError(
        f"sequence_axis must be the name of a mesh axis or None, got {axis!r}"
      )
    head, rows = self.head_axis, self.batch_axes
    if head is not None and not isinstance(head, str):
      raise TypeError(
        f"head_axis must be the name of a mesh axis or None, got {head!r}"
      )
    if not isinstance(rows, tuple) or not all(isinstance(x, str) for x in rows):
      raise TypeError(
        f"batch_axes must be a tuple of names of mesh axes, got {rows!r}"
      )

  @property
  def inverse(self) -> InverseSpec:
    """`spec` with the defaults of this chunk size filled in."""
    return self._inverse  # type: ignore[attr-defined]

  def check_dtype(self, dtype: DTypeLike) -> None:
    """Raises ValueError if a named kernel cannot invert matrices of a type."""
    size = self.chunk_size
    a = jax.ShapeDtypeStruct((size, size), dtype)
    check(self.implementation, self.inverse, a)
