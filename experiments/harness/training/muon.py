"""Muon: matrices move by the orthogonal factor of their momentum.

Jordan et al. (2024), scaled as by Liu et al. (arXiv 2502.16982), so that its
learning rates are AdamW's. optax has it for a tree of matrices, one after the
other; here those of one shape go through Newton and Schulz's products together:
the 58 kernels of the large photo prior take ten chains of products.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

Arrays = dict[str, jax.Array]  # by name
SCALE = 0.2  # root mean square of an update at rate 1, as AdamW's is


def muon(
  rate: jax.Array | float,
  others: optax.GradientTransformation,
  is_matrix: Callable[[str], bool],
  *,
  decay: float = 0.0,
) -> optax.GradientTransformation:
  """Muon for the kernels that are matrices, another rule for other arrays.

  Args:
    rate: learning rate, may be traced.
    others: what moves the others, learning rate and all.
    is_matrix: whether an array of this name is a matrix; its last axis is of
      outputs, all before of inputs.
    decay: weight decay of a matrix in a step of rate 1.

  Returns:
    For arrays by name.
  """

  def label(name: str) -> str:
    return "matrix" if is_matrix(name) else "other"

  return optax.partition(
    {"matrix": _stacked(rate, decay), "other": others},
    lambda arrays: {name: label(name) for name in arrays},
  )


def _stacked(
  rate: jax.Array | float, decay: float
) -> optax.GradientTransformation:
  """Muon of arrays by name, those of one shape at once."""

  def dimensions(stacks: Arrays) -> dict[str, MuonDimensionNumbers]:
    return {
      name: MuonDimensionNumbers(tuple(range(1, x.ndim - 1)), x.ndim - 1)
      for name, x in stacks.items()
    }

  rule = optax.contrib.muon(
    rate,
    weight_decay=decay,
    consistent_rms=SCALE,
    muon_weight_dimension_numbers=dimensions,
  )

  def init(params: Arrays) -> optax.OptState:
    return rule.init(_stacks(_held(params)))

  def update(
    updates: Arrays, state: optax.OptState, params: Arrays | None = None
  ) -> tuple[Arrays, optax.OptState]:
    held = _held(updates)
    old = None if params is None else _stacks(_held(params))
    found, state = rule.update(_stacks(held), state, old)
    return updates | _taken_apart(found, held), state

  return optax.GradientTransformation(init, update)


def _held(arrays: Arrays) -> Arrays:
  """Without those that `optax.partition` masks."""
  return {k: x for k, x in arrays.items() if isinstance(x, jax.Array)}


def _alike(arrays: Arrays) -> dict[str, list[str]]:
  """Names of arrays of one shape, by it: in words, which trees have as keys."""
  found: dict[str, list[str]] = {}
  for name in sorted(arrays):
    shape = "x".join(map(str, arrays[name].shape))
    found.setdefault(shape, []).append(name)
  return found


def _stacks(arrays: Arrays) -> Arrays:
  return {
    shape: jnp.stack([arrays[name] for name in names])
    for shape, names in _alike(arrays).items()
  }


def _taken_apart(stacks: Arrays, like: Arrays) -> Arrays:
  return {
    name: stacks[shape][i]
    for shape, names in _alike(like).items()
    for i, name in enumerate(names)
  }
