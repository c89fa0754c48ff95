"""How wrong the inverses of a model's own chunk matrices are, by layer."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import neumann_jax
from experiments.harness.subjects.matrix_errors import Problem
from neumann_jax import ChunkMatrices, InverseSpec
from neumann_jax.chunk_inverse.spec_names import without_format
from neumann_jax.model.scan_layers import unstack_layers


@functools.partial(jax.jit, static_argnums=0)
def matrices(
  graph: nnx.GraphDef, state: nnx.State, tokens: jax.Array, mask: jax.Array
) -> tuple[ChunkMatrices, ...]:
  """The matrices that each Gated DeltaNet layer inverts; any kind of layers."""
  model = nnx.merge(graph, state)
  if model.execution.scan_layers:
    model = unstack_layers(model)
  return model.chunk_matrices(tokens, mask=mask)


def layer_rows(
  parts: tuple[ChunkMatrices, ...],  # from `matrices`
  specs: Mapping[str, InverseSpec],  # by name
  *,
  weights: str,  # name of the weights' quantisation
  tolerance: float,  # of `plan`: the largest row sum of |T - X|
  implementation: str,  # of the inverse
) -> Iterator[dict[str, Any]]:
  """Measures every inverse on every layer, layers outermost.

  A row has the worst `MatrixErrors`, and the method and the products of what
  `plan` takes in this arithmetic for the layer's gates.
  """
  for layer, part in enumerate(parts):
    size = part.a.shape[-1]
    # [n, C, C], twice [n, C], and [n]
    every = (jnp.asarray(x).reshape(-1, *jnp.shape(x)[3:]) for x in part)
    problem = Problem.of(*every)
    for name, spec in specs.items():
      plan = neumann_jax.plan(
        size,
        tolerance=tolerance,
        precision=spec.precision,
        quant=spec.quant,
        beta_max=float(jnp.max(part.beta)),
        log_decay=part.log_decay,
      )
      yield {
        "weights": weights,
        "chunk_size": size,
        "spec": name,
        "layer": layer,
        "matrices": len(problem.a),
        **problem.errors(spec, implementation).worst(),
        "planned": without_format(plan.spec),
        "planned_products": plan.products,
      }
