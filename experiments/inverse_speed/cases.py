"""What the speed study times, by name: "[xla] NAME OF A SPEC"."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

import neumann_jax
from neumann_jax import InverseSpec, RuleOptions
from neumann_jax.chunk_inverse.inverse_spec import resolve


class Case(NamedTuple):
  """One inverse to time."""

  name: str  # as configs write it
  spec: InverseSpec  # what the name stands for
  implementation: str  # passed to `neumann_jax.inverse`

  @property
  def paper(self) -> bool:
    """Whether it is the paper's own form, which may overflow."""
    return self.spec.method == "banded" and not self.spec.mask_every_step


def parse(name: str, chunk_size: int, implementation: str) -> Case:
  """The case of a name as `InverseSpec.parse` reads it.

  Behind "xla " it stays there. `banded` without N and S is the paper's setting
  for this chunk size, N3 S8 at 64, and `banded-masked` N3 and S = C / 4.
  ValueError for what is unknown or cannot run.
  """
  inner = name.removeprefix("xla ")
  if inner != name:
    implementation = "xla"
  spec = InverseSpec.parse(inner)
  if spec.mask_every_step and spec.order is None:
    # S (N + 1) = C: the fewest masked steps that are exact.
    steps = max(chunk_size // 4, 1)
    spec = dataclasses.replace(spec, order=3, residual_steps=steps)
  if spec.method == "banded":
    spec = resolve(spec, chunk_size)
  RuleOptions(chunk_size, spec, implementation=implementation)
  return Case(name, spec, implementation)


@functools.cache
def compiled(case: Case) -> Callable[[jax.Array, jax.Array], jax.Array]:
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
