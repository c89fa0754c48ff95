"""How wrong the inverses of a model's own chunk matrices are, by layer."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import neumann_jax
from experiments.data import key_families
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.spec_names import without_format
from neumann_jax.delta_rule.chunk_matrix import ChunkMatrices
from neumann_jax.model.scan_layers import unstack_layers


class LayerRow(NamedTuple):
  """One inverse on the matrices of one Gated DeltaNet layer.

  Attributes:
    weights: name of the weights' quantisation.
    chunk_size: C.
    spec: name of the inverse.
    layer: number among the Gated DeltaNet layers.
    matrices: how many.
    error: worst relative Frobenius error of the strictly lower part, against
      the float64 inverse of the same float32 matrix.
    row_sum: largest row sum of |T - X|.
    certified: largest row sum of the certificate, which bounds row_sum.
    violations: entries whose error exceeds their certificate.
    planned: what `plan` takes in this arithmetic for the layer's gates.
    planned_products: its C x C products.
  """

  weights: str
  chunk_size: int
  spec: str
  layer: int
  matrices: int
  error: float
  row_sum: float
  certified: float
  violations: int
  planned: str
  planned_products: int


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
  parts: tuple[ChunkMatrices, ...],
  specs: Mapping[str, InverseSpec],
  *,
  weights: str,
  tolerance: float,
  implementation: str,
) -> Iterator[LayerRow]:
  """Measures every inverse on every layer.

  Args:
    parts: from `matrices`.
    specs: by name.
    weights: name of the weights' quantisation.
    tolerance: of `plan`: the largest row sum of |T - X|.
    implementation: of the inverse.

  Yields:
    One row a layer and spec, layers outermost.
  """
  for layer, part in enumerate(parts):
    size = part.a.shape[-1]
    a = part.a.reshape(-1, size, size)
    envelope = neumann_jax.envelope(part.beta, part.log_decay)
    envelope = envelope.reshape(a.shape)
    truth = key_families.exact_inverse(np.asarray(a))
    for name, spec in specs.items():
      x, bound = approximate(a, envelope, spec, implementation)
      found = judged(np.asarray(x), truth, np.asarray(bound))
      plan = _plan(part, spec, tolerance)
      yield LayerRow(
        weights,
        size,
        name,
        layer,
        len(a),
        float(found.error.max()),
        float(found.row_sum.max()),
        float(found.certified.max()),
        int(found.violations.sum()),
        planned=without_format(plan.spec),
        planned_products=plan.products,
      )


class Judged(NamedTuple):
  """How wrong each of n matrices is.

  Attributes:
    error: [n] relative Frobenius error of the strictly lower part; infinite
      where an entry is not finite.
    row_sum: [n] largest row sum of |T - X|.
    certified: [n] largest row sum of the certificate.
    violations: [n] entries whose error exceeds their certificate.
  """

  error: np.ndarray
  row_sum: np.ndarray
  certified: np.ndarray
  violations: np.ndarray


def approximate(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec, implementation: str
) -> tuple[jax.Array, jax.Array]:
  """The inverse of I + A and its entrywise certificate, [n, C, C] each."""
  x = _inverse(a, envelope, spec, implementation)
  return x, _certify(a, x, envelope)


# Apart, so that a certificate is compiled once for all inverses.
_certify = jax.jit(neumann_jax.certify)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _inverse(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec, implementation: str
) -> jax.Array:
  return neumann_jax.inverse(
    a, spec, envelope=envelope, implementation=implementation
  )


def judged(x: np.ndarray, truth: np.ndarray, bound: np.ndarray) -> Judged:
  """Judges approximations [n, C, C] by the float64 inverse and their bounds."""
  off = np.abs(np.where(np.isfinite(x), x, np.inf) - truth)
  bound = np.asarray(bound, np.float64)
  return Judged(
    key_families.relative_error(x, truth),
    off.sum(axis=-1).max(axis=-1),
    bound.sum(axis=-1).max(axis=-1),
    (off > bound).sum(axis=(-1, -2)),
  )


def _plan(
  part: ChunkMatrices, spec: InverseSpec, tolerance: float
) -> neumann_jax.Plan:
  return neumann_jax.plan(
    part.a.shape[-1],
    tolerance=tolerance,
    precision=spec.precision,
    quant=spec.quant,
    beta_max=float(jnp.max(part.beta)),
    log_decay=part.log_decay,
  )
