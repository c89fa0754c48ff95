"""A value that may only be lowered for one platform.

jax chooses a branch by platform with `jax.lax.platform_dependent`; this is the
other half, a request that must not fall back: lowering it for a platform that
it does not name raises, and tracing, exporting or compiling for one that it
names works from any host.
"""

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def only_on(x: jax.Array, platform: str, refusal: str) -> jax.Array:
  """x, unless it is lowered for another platform.

  Args:
    x: any array.
    platform: "cpu", "cuda", "rocm" or "tpu".
    refusal: what to say; `{platforms}` is filled in.

  Returns:
    x. Lowering for another platform raises ValueError(refusal).
  """
  return _only_on.bind(x, platform=platform, refusal=refusal)


_only_on = Primitive("only_on")
_only_on.def_abstract_eval(lambda aval, **_: aval)
_only_on.def_impl(
  lambda x, **params: jax.jit(only_on, static_argnums=(1, 2))(
    x, params["platform"], params["refusal"]
  )
)
batching.primitive_batchers[_only_on] = lambda args, dims, **params: (
  _only_on.bind(*args, **params),
  dims[0],
)


def _lower(ctx, x, *, platform: str, refusal: str):
  platforms = ctx.module_context.platforms
  if any(name != platform for name in platforms):
    raise ValueError(refusal.format(platforms=" and ".join(platforms)))
  return [x]


mlir.register_lowering(_only_on, _lower)
