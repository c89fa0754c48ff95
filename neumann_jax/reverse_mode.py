"""First derivatives in reverse mode only, and errors that say so for others.

jax refuses a tangent of `jax.custom_vjp` in words that name no option of ours,
and a derivative of a kernel in none that help.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def differentiated_once(f: Callable[..., Any]) -> Callable[..., Any]:
  """f of either pass of a kernel, which refuses a derivative and says why."""
  once = jax.custom_jvp(f)
  once.defjvp(_refuse)
  return once


def marked(arrays: Any) -> Any:
  """The arrays, whose tangents can be transposed and nothing else.

  The mark is gone after one derivative: where the backward pass has derivatives
  of its own, they may be in either mode.

  Args:
    arrays: a tree of them; integers stay as they are.
  """

  def mark(x):
    wide = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return _marked.bind(x) if wide else x

  return jax.tree.map(mark, arrays)


def _refuse(*_: Any, **__: Any) -> Any:
  raise NotImplementedError(
    "kernels of fused=True have first derivatives in reverse mode only: for "
    "second ones and for tangents use fused=False, or implementation='xla'"
  )


def _jvp(primals, tangents):
  (x,), (tangent,) = primals, tangents
  zero = isinstance(tangent, ad.Zero)
  return x, tangent if zero else _transposed_only.bind(tangent)


_marked = Primitive("marked")
_marked.def_impl(lambda x: x)
_marked.def_abstract_eval(lambda aval: aval)
ad.primitive_jvps[_marked] = _jvp
batching.primitive_batchers[_marked] = lambda args, dims: (
  _marked.bind(*args),
  dims[0],
)
mlir.register_lowering(_marked, lambda ctx, x: [x])

# Refuses where jax refuses a tangent of `jax.custom_vjp`, and before it.
_transposed_only = Primitive("transposed_only")
_transposed_only.def_impl(_refuse)
_transposed_only.def_abstract_eval(lambda aval: aval)
ad.deflinear2(_transposed_only, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_transposed_only] = _refuse
mlir.register_lowering(_transposed_only, _refuse)
