"""Which back end runs an operation: the one place that chooses kernels.

An operation (the chunk inverse, the WY representation, the scan over chunks)
hands in its plain XLA form and a table of kernels by name; `run` takes the one
that a request and the platform call for, and differentiates it. Names are
`auto`, `tpu`, `gpu`, `xla` and `interpret`.

The choice is made from the arguments and, for `auto`, from the platform that a
program is lowered for; never from an environment variable or the default
device, so that a CPU host compiles and exports for the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "interpret")
# What jax calls the platform of a kernel when it lowers for it.
PLATFORMS = {"tpu": "tpu", "gpu": "cuda"}
# `jax.export` refuses Triton's calls in words that name no option of ours, and
# only a lowering rule is told that a program is exported.
_OF_TRITON = (
  "kernels of Triton are exported: jax.export writes them only with "
  "disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("
  "'__gpu$xla.gpu.triton')], for the jaxlib that reads them; "
  "implementation='xla' needs no check"
)


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
    elif implementation == "auto":
      _log_fallback(name, reason)
    else:
      _warn_of_fallback(implementation, reason)
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
  form = jax.checkpoint(functools.partial(operation.in_xla, static))
  return out, jax.jvp(form, arrays, tangents)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def run_with_backward(
  operation: Operation, implementation: str, static: Hashable, *arrays: Any
) -> Any:
  """`run` of an operation whose backward pass is a kernel as well.

  It has reverse-mode derivatives only.
  """
  return run(operation, implementation, static, *arrays)


run_with_backward.defvjp(
  lambda operation, *given: operation.fwd(*given),
  lambda operation, *given: operation.bwd(*given),
)


@functools.cache
def _log_fallback(name: str, reason: str) -> None:
  logging.info("implementation 'auto' takes XLA on a %s: %s", name, reason)


@functools.cache
def _warn_of_fallback(implementation: str, reason: str) -> None:
  logging.warning(
    "implementation %r takes XLA for a part of the rule: %s",
    implementation,
    reason,
  )


def by_platform(
  default: tuple[ClosedJaxpr, Any],
  kernels: Mapping[str, Callable[..., Any]],
  *arrays: Any,
) -> Any:
  """One of several computations, by the platform a program is lowered for.

  As `lax.platform_dependent`, but each kernel is traced only where a program is
  lowered for its platform: tracing one takes longer than compiling much of what
  surrounds it. It cannot be differentiated, and launches whatever a kernel does
  if anything that it gives is read.

  Args:
    default: the computation on every other platform, as
      `jax.make_jaxpr(..., return_shape=True)` gives it for the arrays.
    kernels: by platform, each a function of the arrays that gives the same.
    *arrays: pytrees, None among them.
  """
  form, like = default
  leaves, tree = jax.tree.flatten(arrays)
  types, settings = tuple(form.out_avals), _Settings.now()

  def branch(platform: str) -> Callable[..., list[jax.Array]]:
    launch = functools.partial(_leaves_of, kernels[platform], tree)
    return lambda *leaves: _launched.bind(
      *leaves, launch=launch, types=types, platform=platform, settings=settings
    )

  out = lax.platform_dependent(
    *leaves,
    default=jaxpr_as_fun(form),
    **{platform: branch(platform) for platform in kernels},
  )
  return jax.tree.unflatten(jax.tree.structure(like), out)


def _leaves_of(
  kernel: Callable[..., Any], tree: Any, *leaves: jax.Array
) -> list[jax.Array]:
  return jax.tree.leaves(kernel(*jax.tree.unflatten(tree, leaves)))


class _Settings(NamedTuple):
  """What of jax's configuration changes how a kernel is traced."""

  x64: bool
  promotion: str
  precision: str | None

  @classmethod
  def now(cls) -> Self:
    """Those of the trace at hand, which has ended when a program is lowered."""
    config = jax.config
    return cls(
      config.jax_enable_x64,
      config.jax_numpy_dtype_promotion,
      config.jax_default_matmul_precision,
    )


_launched = Primitive("launched")
_launched.multiple_results = True
_launched.def_abstract_eval(lambda *_, types, **__: types)


def _batch_launched(arrays, axes, *, launch, types, **params):
  del types
  mapped = jax.vmap(launch, in_axes=tuple(axes))
  many = jax.make_jaxpr(mapped)(*arrays)
  out = _launched.bind(
    *arrays,
    launch=jaxpr_as_fun(many),
    types=tuple(many.out_avals),
    **params,
  )
  return out, [0] * len(out)


batching.primitive_batchers[_launched] = _batch_launched


@functools.cache
def _warn_of_triton() -> None:
  logging.warning(_OF_TRITON)


def _warn_if_exported(ctx: Any) -> None:
  if getattr(ctx.module_context.lowering_parameters, "for_export", False):
    _warn_of_triton()


def _lower_launched(own: str | None) -> Callable:
  def call(*arrays, launch, types, platform, settings):
    if platform != own:
      # Of a platform that never takes this branch: `lax.platform_dependent`
      # lowers each of its branches for all that a program is exported for.
      return [jnp.zeros(x.shape, x.dtype) for x in types]
    with (
      jax.enable_x64(settings.x64),
      jax.numpy_dtype_promotion(settings.promotion),
      jax.default_matmul_precision(settings.precision),
    ):
      out = launch(*arrays)
    found = [(x.shape, x.dtype) for x in out]
    assert found == [(x.shape, x.dtype) for x in types], (found, types)
    return out

  lower = mlir.lower_fun(call)

  def rule(ctx, *args, platform, **params):
    if platform == own == PLATFORMS["gpu"]:
      _warn_if_exported(ctx)
    return lower(ctx, *args, platform=platform, **params)

  return rule


mlir.register_lowering(_launched, _lower_launched(None))
for _platform in PLATFORMS.values():
  mlir.register_lowering(
    _launched, _lower_launched(_platform), platform=_platform
  )


def bound_to(
  name: str,
  arrays: tuple,
  option: str = "implementation",
  *,
  of_triton: bool = False,
) -> tuple:
  """The arrays, which can then be lowered for the kernel's platform only.

  Args:
    name: of PLATFORMS.
    arrays: a tree of them.
    option: that asked for the name, for the sentence of a refusal.
    of_triton: whether the kernel is Triton's.
  """
  platform = PLATFORMS[name]
  refusal = (
    f"{option}={name!r} runs on {platform} only, but the "
    "program is lowered for {platforms}; use 'auto' or 'xla'"
  )
  first, *rest = jax.tree.leaves(arrays)
  first = _only_on.bind(
    first, platform=platform, refusal=refusal, of_triton=of_triton
  )
  return jax.tree.unflatten(jax.tree.structure(arrays), [first, *rest])


# The other half of `lax.platform_dependent`: a request that must not fall back.
# Tracing, exporting and compiling for its platform work from any host; lowering
# for another one raises, which no primitive of jax does.
_only_on = Primitive("only_on")
_only_on.def_abstract_eval(lambda aval, **_: aval)
ad.deflinear2(_only_on, lambda cotangent, *_, **__: [cotangent])
_only_on.def_impl(
  lambda x, **params: jax.jit(functools.partial(_only_on.bind, **params))(x)
)
batching.primitive_batchers[_only_on] = lambda args, dims, **params: (
  _only_on.bind(*args, **params),
  dims[0],
)


def _lower(ctx, x, *, platform: str, refusal: str, of_triton: bool):
  platforms = ctx.module_context.platforms
  if any(name != platform for name in platforms):
    raise ValueError(refusal.format(platforms=" and ".join(platforms)))
  if of_triton:
    _warn_if_exported(ctx)
  return [x]


mlir.register_lowering(_only_on, _lower)
