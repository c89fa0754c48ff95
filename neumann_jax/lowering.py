"""What is known only when a program is lowered: its platforms.

`by_platform` takes one of several computations by them, `bound_to` refuses all
but one of them. Tracing, exporting and compiling for a platform work from any
host. Every kernel is traced in 32 bits: those of TPUs and Triton's by
`pallas_call`, those of Mosaic GPU by `in_32_bits`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.experimental import pallas as pl
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

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
  plain = jaxpr_as_fun(form)

  def branch(platform: str) -> Callable[..., list[jax.Array]]:
    launch = functools.partial(_leaves_of, kernels[platform], tree)
    return lambda *leaves: _launched.bind(
      *leaves,
      launch=launch,
      plain=plain,
      types=types,
      platform=platform,
      settings=settings,
    )

  out = lax.platform_dependent(
    *leaves,
    default=plain,
    **{platform: branch(platform) for platform in kernels},
  )
  return jax.tree.unflatten(jax.tree.structure(like), out)


def pallas_call(kernel: Callable[..., Any], **options: Any) -> Callable:
  """`pl.pallas_call` whose body and index maps are traced without x64.

  Args:
    kernel: as of `pl.pallas_call`, like the options.
    **options: likewise.
  """
  return in_32_bits(pl.pallas_call(kernel, **options))


def in_32_bits(call: Callable[..., Any]) -> Callable[..., Any]:
  """The call of a kernel, traced without x64.

  With it an int is 64 bits wide, which Mosaic and Triton mix with none of 32,
  and which no TPU has.

  Args:
    call: of arrays.
  """

  def narrow(*arrays: jax.Array) -> Any:
    with jax.enable_x64(False):
      return call(*arrays)

  return narrow


def _leaves_of(
  kernel: Callable[..., Any], tree: Any, *leaves: jax.Array
) -> list[jax.Array]:
  return jax.tree.leaves(kernel(*jax.tree.unflatten(tree, leaves)))


class _Settings(NamedTuple):
  """What of jax's configuration changes how a kernel is traced.

  The abstract mesh is not here: jax lowers under that of the trace by itself.
  """

  x64: bool
  promotion: str
  precision: str | None

  @classmethod
  def now(cls) -> Self:
    """Those of the trace at hand, which has ended when a program is lowered."""
    config: Any = jax.config  # its flags are not typed
    return cls(
      config.jax_enable_x64,
      config.jax_numpy_dtype_promotion,
      config.jax_default_matmul_precision,
    )


_launched = Primitive("launched")
_launched.multiple_results = True
_launched.def_abstract_eval(lambda *_, types, **__: types)


def _batch_launched(arrays, axes, *, launch, plain, types, **params):
  del types
  launch, plain = (jax.vmap(f, in_axes=tuple(axes)) for f in (launch, plain))
  # The default tells the types: the kernel is not to be traced for them.
  out = _launched.bind(
    *arrays,
    launch=launch,
    plain=plain,
    types=tuple(jax.make_jaxpr(plain)(*arrays).out_avals),
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


def _check_types(platform: str, out: Sequence[Any], types: tuple) -> None:
  found, wanted = (
    ", ".join(f"{x.shape} {x.dtype}" for x in y) for y in (out, types)
  )
  if found != wanted:
    raise TypeError(
      f"a kernel for {platform} gives {found} where the XLA form gives {wanted}"
    )


def _lower_launched(own: str | None) -> Callable:
  def call(*arrays, launch, plain, types, platform, settings):
    del plain
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
    _check_types(platform, out, types)
    return out

  lower = mlir.lower_fun(call)

  def rule(ctx, *args, platform, **params):
    # Those for CUDA are Triton's, or need what one of Triton's makes.
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
