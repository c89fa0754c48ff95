"""What the speed study times, by name: "[xla] METHOD FORMAT [refine]"."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec
from neumann_jax.chunk_inverse import dispatch
from neumann_jax.chunk_inverse.inverse_spec import resolve

FORMATS: dict[str, dict] = {
  "float32": {},
  "tf32": {"precision": "tf32"},
  "bfloat16": {"precision": "bfloat16"},
  "float16": {"precision": "float16"},
  "int8-dynamic": {"quant": QuantSpec(8, "dynamic", integer=True)},
  "int8-envelope": {"quant": QuantSpec(8, "envelope", integer=True)},
  "int16-dynamic": {"quant": QuantSpec(16, "dynamic", integer=True)},
  "int16-envelope": {"quant": QuantSpec(16, "envelope", integer=True)},
}
METHODS = ("ladder", "newton", "banded", "banded-masked", "exact")


class Case(NamedTuple):
  """One inverse to time.

  Attributes:
    name: as configs write it.
    method: one of METHODS.
    format: one of FORMATS.
    spec: what the name stands for.
    implementation: passed to `neumann_jax.inverse`.
  """

  name: str
  method: str
  format: str
  spec: InverseSpec
  implementation: str

  @property
  def paper(self) -> bool:
    """Whether it is the paper's own form, which may overflow."""
    return self.method == "banded"


def parse(name: str, chunk_size: int, implementation: str) -> Case:
  """The case that a name stands for.

  Args:
    name: "[xla] METHOD FORMAT [refine]"; `banded` is the paper's setting
      for this chunk size, N=3 S=8 at 64, and `banded-masked` N=3 S=C/4 with
      the band masked at every step.
    chunk_size: C.
    implementation: "gpu" or "xla"; a name that begins with "xla" stays there.

  Returns:
    The case.

  Raises:
    ValueError: an unknown name, or a spec that the implementation cannot run.
  """
  words = name.split()
  if words and words[0] == "xla":
    implementation, words = "xla", words[1:]
  known = len(words) in (2, 3) and words[0] in METHODS and words[1] in FORMATS
  if not known or words[2:] not in ([], ["refine"]):
    raise ValueError(
      f"a spec is named [xla] METHOD FORMAT [refine], METHOD one of "
      f"{', '.join(METHODS)} and FORMAT one of {', '.join(FORMATS)}; got "
      f"{name!r}"
    )
  fields = _method_fields(words[0], chunk_size) | FORMATS[words[1]]
  spec = InverseSpec(**fields, refine=len(words) - 2)
  dispatch.check(implementation, spec, chunk_size)
  return Case(name, words[0], words[1], spec, implementation)


@functools.cache
def compiled(
  case: Case,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The jitted inverse (a [N, C, C], bound [N]) -> T, one for every caller.

  `bound` is the largest beta of each matrix; only fixed scales read it.
  """

  @jax.jit
  def run(a: jax.Array, bound: jax.Array) -> jax.Array:
    envelope = None
    if case.spec.quant is not None and case.spec.quant.scale == "envelope":
      # Constant over a matrix: XLA folds the broadcast into the maximum.
      envelope = jnp.broadcast_to(bound[:, None, None], a.shape)
    return neumann_jax.inverse(
      a, case.spec, envelope=envelope, implementation=case.implementation
    )

  return run


def _method_fields(method: str, chunk_size: int) -> dict:
  if method == "banded":
    paper = resolve(InverseSpec("banded"), chunk_size)
    return {
      "method": "banded",
      "order": paper.order,
      "residual_steps": paper.residual_steps,
      "block": paper.block,
    }
  if method == "banded-masked":
    return {
      "method": "banded",
      "order": 3,
      "residual_steps": max(chunk_size // 4, 1),
      "mask_every_step": True,
    }
  return {"method": method}
