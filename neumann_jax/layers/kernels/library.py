"""Kernels that come with jax, wherever a program calls them.

Inside `jax.shard_map` jax asks every kernel over which mesh axes its results
vary, which those of megablox and splash attention do not say (jax 0.10 to
0.12). Settings of a trace belong to a thread: in another one nobody asks.

cuDNN's attention keeps arrays of no elements for its backward pass, in place of
operands that it was not given. Where one enters a `jax.shard_map` that uses it,
by a loop over layers for one, the compiler of jaxlib 0.11.2 ends with a
segmentation fault, on any platform.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from neumann_jax.delta_rule import layout


def call(kernel: Callable[..., Any], *arrays: Any) -> Any:
  """kernel(*arrays), of a kernel traced outside of any `jax.shard_map`.

  It cannot be differentiated where the kernel has a rule of its own for that,
  see `differentiable`.

  Args:
    kernel: a function of trees of arrays.
    *arrays: its arguments, None among them.

  Returns:
    What the kernel gives, varying over what any argument varies over.
  """
  leaves, tree = jax.tree.flatten(arrays)
  shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]

  def traced() -> tuple[Any, Any]:
    # They mix types of integers.
    with jax.numpy_dtype_promotion("standard"):
      return jax.make_jaxpr(
        lambda *leaves: kernel(*jax.tree.unflatten(tree, leaves)),
        return_shape=True,
      )(*shapes)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    jaxpr, like = pool.submit(traced).result()
  run = layout.gives_varying(jaxpr_as_fun(jaxpr))
  # Alike before the kernel: its body may not mix what varies with what does
  # not, and nobody converts within a jaxpr that exists already.
  found = run(*layout.varying_alike(leaves))
  return jax.tree.unflatten(jax.tree.structure(like), found)


def differentiable(
  kernel: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """`call` of a kernel that has its own reverse derivative.

  Args:
    kernel: a function of arrays, all but the last of which it is
      differentiated by; the last are integers or None.

  Returns:
    A function of the same arguments.
  """

  def forward(*arrays):
    *floats, ids = arrays
    return jax.vjp(lambda *floats: kernel(*floats, ids), *floats)

  run = jax.custom_vjp(lambda *arrays: call(kernel, *arrays))
  run.defvjp(
    lambda *arrays: call(forward, *arrays),
    # The pullback is a tree whose leaves are what the forward pass kept.
    lambda pull, cotangent: (
      *call(lambda pull, cotangent: pull(cotangent), pull, cotangent),
      None,
    ),
  )
  return run


def keeping_no_empty(
  kernel: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """The kernel, of whose forward pass no empty array is kept for the backward.

  Args:
    kernel: a function of arrays with reverse derivatives by all but the last,
      which is of no float type or None.

  Returns:
    A function of the same arguments.
  """

  def forward(*arrays):
    *floats, last = arrays
    out, pull = jax.vjp(lambda *floats: kernel(*floats, last), *floats)
    leaves, tree = jax.tree.flatten(pull)
    empty = {i: jax.typeof(x) for i, x in enumerate(leaves) if not x.size}
    whole = functools.partial(_with_empty, tree, empty)
    return out, jax.tree_util.Partial(whole, [x for x in leaves if x.size])

  run = jax.custom_vjp(lambda *arrays: kernel(*arrays))
  run.defvjp(forward, lambda pull, cotangent: (*pull()(cotangent), None))
  return run


def _with_empty(
  tree: Any, empty: Mapping[int, Any], kept: Sequence[jax.Array]
) -> Any:
  """A tree of what was kept, and of arrays of these types between it."""
  rest = iter(kept)
  leaves = [
    _empty(empty[i]) if i in empty else next(rest)
    for i in range(tree.num_leaves)
  ]
  return jax.tree.unflatten(tree, leaves)


def _empty(like: Any) -> jax.Array:
  x = jnp.zeros(like.shape, like.dtype)
  axes = tuple(sorted(like.manual_axis_type.varying))
  return lax.pcast(x, axes, to="varying") if axes else x
