"""Which back end runs an operation: the one place that chooses kernels.

An operation (the chunk inverse, the WY representation, the scan over chunks)
hands in its plain XLA form and a table of kernels by name; `run` takes the one
that a request and the platform call for, and differentiates it. Names are
`auto`, `tpu`, `gpu`, `xla` and `interpret`.

The choice is made from the arguments and, for `auto`, from the platform that a
program is lowered for, so that a CPU host compiles and exports for the others.
It is never made from an environment variable, and from the host's accelerator
for one operation only: the fused rule must know before lowering what its
backward pass keeps, see `target`. On a host with a GPU `auto` therefore gives
it on a TPU the kernels of its parts, and not that of all of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from absl import logging
from jax.experimental.pallas import tpu as pltpu

from neumann_jax import reverse_mode
from neumann_jax.lowering import PLATFORMS, bound_to, by_platform

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "interpret")


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What computes an operation on one platform.

  Attributes:
    refusal: (static, *arrays) to why it cannot run, as a clause, or None if it
      can; only shapes and types of the arrays are read.
    launch: (static, *arrays) to what the XLA form gives. That of a TPU takes
      `interpret` too, to run its body anywhere.
  """

  refusal: Callable[..., str | None]
  launch: Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
  """One operation, made once a module: programs are cached by its identity.

  Attributes:
    in_xla: (static, *arrays) to arrays; the defining semantics.
    kernels: by the name that asks for them.
    asked: what a refusal says before `implementation=`.
    jvp: (implementation, static, arrays, tangents) to what the operation gives
      and its tangent, which `jax` transposes. Without it the derivative is
      that of the XLA form, which is computed again for it.
    fwd: (implementation, static, *arrays) to what the operation gives and what
      `bwd` needs, for `run_with_backward`.
    bwd: (implementation, static, residuals, cotangents) to one cotangent an
      array.
  """

  in_xla: Callable[..., Any]
  kernels: Mapping[str, Kernel]
  asked: str = ""
  jvp: Callable[..., tuple[Any, Any]] | None = None
  fwd: Callable[..., tuple[Any, Any]] | None = None
  bwd: Callable[..., tuple] | None = None


def check_name(implementation: str) -> None:
  """Raises ValueError unless `implementation` is one of IMPLEMENTATIONS."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; "
      f"got {implementation!r}"
    )


def check(
  operation: Operation, implementation: str, static: Hashable, *arrays: Any
) -> None:
  """Raises ValueError for an unknown name, or a named kernel that cannot run.

  Args:
    operation: which.
    implementation: one of IMPLEMENTATIONS.
    static: of the operation.
    *arrays: of the operation, or their shapes and types.
  """
  check_name(implementation)
  if implementation in ("auto", "xla"):
    return
  # The body that is interpreted is the TPU kernel's.
  name = "tpu" if implementation == "interpret" else implementation
  reason = operation.kernels[name].refusal(static, *arrays)
  if reason is not None:
    raise ValueError(
      f"{operation.asked}implementation={implementation!r} cannot run: "
      f"{reason}; use 'auto' or 'xla'"
    )


def runs(
  operation: Operation, implementation: str, static: Hashable, *arrays: Any
) -> dict[str, Kernel]:
  """The kernels that `run` would consider, by name; empty: the XLA form."""
  names = {
    "auto": tuple(PLATFORMS),
    "xla": (),
    "interpret": ("tpu",),
  }.get(implementation, (implementation,))
  found = {}
  for name in names:
    if name not in operation.kernels:
      continue
    reason = operation.kernels[name].refusal(static, *arrays)
    if reason is None:
      found[name] = operation.kernels[name]
    else:
      say_fallback(implementation, name, reason)
  return found


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run(
  operation: Operation, implementation: str, static: Hashable, *arrays: Any
) -> Any:
  """The operation by the implementation that a name stands for.

  Args:
    operation: which.
    implementation: "xla" is the XLA form; "tpu" and "gpu" are the kernels,
      which raise when lowered for another platform; "interpret" runs the body
      of the TPU kernel on any; "auto" takes the kernel of the platform where
      it can run and logs the reason once where it cannot. Where an operation
      has no kernel of the name, the XLA form runs: whether it must have one is
      for `check` to ask, at the public door.
    static: what the operation is told besides arrays.
    *arrays: pytrees, None among them.

  Returns:
    What the XLA form gives, differentiable forward and backward.
  """
  kernels = runs(operation, implementation, static, *arrays)
  default = functools.partial(operation.in_xla, static)
  if not kernels:
    return default(*arrays)
  if implementation == "auto":
    launches = {
      PLATFORMS[name]: functools.partial(_launch, kernel, static)
      for name, kernel in kernels.items()
    }
    # Traced here: a frame less between a public door and its algorithm.
    form = jax.make_jaxpr(default, return_shape=True)(*arrays)
    return by_platform(form, launches, *arrays)
  (kernel,) = kernels.values()
  if implementation == "interpret":
    # Mosaic's own interpreter: it also finds what plain interpretation of the
    # body cannot, reads of memory that nothing wrote among them.
    return _launch(kernel, static, *arrays, interpret=pltpu.InterpretParams())
  of_triton = implementation == "gpu"  # every kernel of that name here is
  bound = bound_to(implementation, arrays, of_triton=of_triton)
  return _launch(kernel, static, *bound)


def _launch(kernel: Kernel, static: Hashable, *arrays: Any, **options: Any):
  """Calls a kernel: all of them pass here, on the arrays of one device.

  A Pallas call cannot be partitioned automatically: on a mesh the rule stands
  in `jax.shard_map` already, see `delta_rule.on_mesh`.
  """
  return kernel.launch(static, *arrays, **options)


@run.defjvp
def _run_jvp(operation, implementation, static, arrays, tangents):
  if operation.jvp is not None:
    return operation.jvp(implementation, static, arrays, tangents)
  out = run(operation, implementation, static, *arrays)
  # A kernel has no derivative of its own. Under `jax.checkpoint` reverse mode
  # keeps the arrays alone and computes the XLA form for the backward pass.
  form: Callable[..., Any] = functools.partial(operation.in_xla, static)
  # The simulator's kernels have effects, which a remat refuses.
  if implementation != "interpret":
    form = jax.checkpoint(form)
  return out, jax.jvp(form, arrays, tangents)[1]


def run_with_backward(
  operation: Operation, implementation: str, static: Hashable, *arrays: Any
) -> Any:
  """`run` of an operation whose backward pass is a kernel as well.

  It has reverse-mode derivatives only; a tangent raises an error that says so.
  """
  arrays = reverse_mode.marked(arrays)
  return _with_backward(operation, implementation, static, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_backward(operation, implementation, static, *arrays):
  return run(operation, implementation, static, *arrays)


_with_backward.defvjp(
  lambda operation, *given: operation.fwd(*given),
  lambda operation, *given: operation.bwd(*given),
)


@functools.cache
def say_fallback(
  implementation: str, name: str, reason: str, instead: str = "XLA"
) -> None:
  """Says once that kernels do not run: a warning to who named them.

  Args:
    implementation: that was asked for, "auto" among them.
    name: of the kernels, "tpu" or "gpu".
    reason: why they cannot run, as a clause.
    instead: what runs.
  """
  # "interpret" runs the kernels of a TPU, for tests: it is warned as well.
  log = logging.info if implementation == "auto" else logging.warning
  log(
    "implementation %r takes %s on a %s: %s",
    implementation,
    instead,
    name,
    reason,
  )
