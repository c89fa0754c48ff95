"""The kernels of a program, and numbers of 64 bits in them."""

import jax
from jax.extend import core

# What a kernel is in a program: of TPUs and Triton, and of Mosaic GPU.
KERNELS = ("pallas_call", "mpmd_map")


def names(jaxpr):
  """Of the kernels that a program launches, once a launch."""
  return _read(jaxpr, inside=False)[1]


def wide(jaxpr, least=1):
  """Types of 64 bits in bodies and index maps of at least so many kernels."""
  found, kernels = _read(jaxpr, inside=False)
  assert len(kernels) >= least, kernels
  return found


def _read(jaxpr, inside):
  """The types, and the names."""
  found, kernels = set(), []
  for equation in jaxpr.eqns:
    is_one = equation.primitive.name in KERNELS
    if is_one:
      kernels.append(_name(equation.params))
    if inside:
      types = [x.aval for x in (*equation.invars, *equation.outvars)]
      dtypes = (str(getattr(x, "dtype", "")) for x in types)
      found |= {dtype for dtype in dtypes if dtype.endswith("64")}
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=_is_jaxpr
    ):
      for one in _jaxprs(value):
        types, more = _read(one, inside or is_one)
        found, kernels = found | types, kernels + more
  return found, kernels


def _name(params):
  where = params.get("name_and_src_info")
  return params.get("name") if where is None else where.name


def _is_jaxpr(x):
  return isinstance(x, (core.Jaxpr, core.ClosedJaxpr))


def _jaxprs(value):
  if isinstance(value, core.ClosedJaxpr):
    return [value.jaxpr]
  if isinstance(value, core.Jaxpr):
    return [value]
  # What Pallas knows of a grid: an index map for each operand.
  blocks = getattr(value, "block_mappings", ())
  return [block.index_map_jaxpr.jaxpr for block in blocks]
