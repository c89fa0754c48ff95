"""An operation of a layer that has a TPU kernel for either pass."""

from collections.abc import Callable
from typing import Any

import jax

from neumann_jax import backends
from neumann_jax.backends import Kernel, Operation
from neumann_jax.delta_rule import layout


def operation(
  in_xla: Callable[..., Any],
  launch: Callable[..., Any],
  gradients: Callable[..., Any],
  *,
  floats: int,
) -> Operation:
  """For `backends.run_with_backward`, where the caller knows that kernels run.

  Args:
    in_xla: (static, *arrays) to arrays; the defining semantics.
    launch: the same by a kernel.
    gradients: (static, *arrays, cotangents) to a cotangent of each of the
      first `floats` arrays, by a kernel.
    floats: how many arrays have a derivative; integers follow them.
  """

  def gradients_in_xla(static, *given):
    *arrays, cotangents = given

    def form(*first):
      return in_xla(static, *first, *arrays[floats:])

    return jax.vjp(form, *arrays[:floats])[1](cotangents)

  def forward(implementation, static, *arrays):
    return backends.run(found, implementation, static, *arrays), arrays

  def backward(implementation, static, arrays, cotangents):
    given = layout.varying_alike((*arrays, cotangents))
    some = backends.run(reverse, implementation, static, *given)
    return (*some, *[None] * (len(arrays) - floats))

  reverse = Operation(
    in_xla=gradients_in_xla, kernels={"tpu": Kernel(_refusal, gradients)}
  )
  found = Operation(
    in_xla=in_xla,
    kernels={"tpu": Kernel(_refusal, launch)},
    fwd=forward,
    bwd=backward,
  )
  return found


def _refusal(*given: Any) -> None:
  """None: the caller has asked already."""
  del given
