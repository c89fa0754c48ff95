"""How wrong the inverses of a model's own chunk matrices are, by layer."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import neumann_jax
from experiments.data import key_families
from neumann_jax import ChunkMatrices, InverseSpec
from neumann_jax.chunk_inverse.spec_names import without_format
from neumann_jax.model.scan_layers import unstack_layers


class MatrixErrors(NamedTuple):
  """How wrong each of n approximate inverses X of T is."""

  # [n] relative Frobenius error of the strictly lower part; infinite where an
  # entry is not finite
  error: np.ndarray
  row_sum: np.ndarray  # [n] largest row sum of |T - X|
  # [n] largest row sum of the certificate, which bounds row_sum
  certified: np.ndarray
  violations: np.ndarray  # [n] entries whose error exceeds their certificate

  def worst(self, where: Any = slice(None)) -> dict[str, Any]:
    """The largest of each over some matrices; violations in all."""
    return {
      name: int(values[where].sum())
      if name == "violations"
      else float(values[where].max())
      for name, values in self._asdict().items()
    }


class Problem(NamedTuple):
  """Matrices to invert and what approximations are compared with."""

  a: jax.Array  # [n, C, C] float32, strictly lower triangular
  envelope: jax.Array  # [n, C, C], what bounds |T| by the gates
  truth: np.ndarray  # [n, C, C], the float64 inverse of I + A

  @classmethod
  def of(cls, a: Any, beta: Any, log_decay: Any) -> "Problem":
    """From matrices [n, C, C] and the gates [n, C] behind them."""
    truth = key_families.exact_inverse(np.asarray(a))
    return cls(jnp.asarray(a), _envelope(beta, log_decay), truth)

  def errors(self, spec: InverseSpec, implementation: str) -> MatrixErrors:
    """Of an inverse, beside its certificate."""
    x = _inverse(self.a, self.envelope, spec, implementation)
    bound = _certify(self.a, x, self.envelope)
    return errors_of(np.asarray(x), self.truth, np.asarray(bound))


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
  """Measures every inverse on every layer.

  Yields:
    One row a layer and spec, layers outermost: what it is of, how many
    matrices, the worst `MatrixErrors`, and the method and the products of what
    `plan` takes in this arithmetic for the layer's gates.
  """
  for layer, part in enumerate(parts):
    size = part.a.shape[-1]
    every = (x.reshape(-1, *x.shape[3:]) for x in part)  # [n, C, C], [n, C]
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


# Apart, so that they are compiled once for all inverses.
_envelope = jax.jit(neumann_jax.envelope)
_certify = jax.jit(neumann_jax.certify)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _inverse(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec, implementation: str
) -> jax.Array:
  return neumann_jax.inverse(
    a, spec, envelope=envelope, implementation=implementation
  )


def errors_of(
  x: np.ndarray, truth: np.ndarray, bound: np.ndarray
) -> MatrixErrors:
  """Compares approximations [n, C, C] with float64 inverses and bounds."""
  off = np.abs(np.where(np.isfinite(x), x, np.inf) - truth)
  bound = np.asarray(bound, np.float64)
  return MatrixErrors(
    key_families.relative_error(x, truth),
    off.sum(axis=-1).max(axis=-1),
    bound.sum(axis=-1).max(axis=-1),
    (off > bound).sum(axis=(-1, -2)),
  )
