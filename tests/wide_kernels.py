"""Numbers of 64 bits in the kernels of a program."""

import jax
from jax.extend import core


def wide(jaxpr, inside=False):
  """Types of 64 bits in bodies and index maps of the kernels of a program."""
  found = set()
  for equation in jaxpr.eqns:
    here = inside or equation.primitive.name == "pallas_call"
    if inside:
      types = [x.aval for x in (*equation.invars, *equation.outvars)]
      names = (str(getattr(x, "dtype", "")) for x in types)
      found |= {name for name in names if name.endswith("64")}
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=_is_jaxpr
    ):
      for one in _jaxprs(value):
        found |= wide(one, here)
  return found


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
