"""How wrong approximate inverses of chunk matrices are, beside certificates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import neumann_jax
from experiments.data import key_families
from neumann_jax import InverseSpec


class MatrixErrors(NamedTuple):
  """How wrong each of n approximate inverses X of T is, [n] each."""

  # relative Frobenius error of the strictly lower part; infinite where an entry
  # is not finite
  error: np.ndarray
  row_sum: np.ndarray  # largest row sum of |T - X|
  certified: np.ndarray  # that of the certificate, which bounds it
  violations: np.ndarray  # entries whose error exceeds their certificate
  entry: np.ndarray  # largest entry of |T - X|
  certified_entry: np.ndarray  # that of the certificate

  def worst(self, where: Any = slice(None)) -> dict[str, Any]:
    """The largest error and row sums over some matrices, all violations."""
    largest = ("error", "row_sum", "certified")
    found = {name: float(getattr(self, name)[where].max()) for name in largest}
    return found | {"violations": int(self.violations[where].sum())}


class Problem(NamedTuple):
  """Matrices to invert and what approximations are compared with."""

  a: jax.Array  # [n, C, C] float32, strictly lower triangular
  envelope: jax.Array  # [n, C, C], what bounds |T| by the gates
  truth: np.ndarray  # [n, C, C], the float64 inverse of I + A

  @classmethod
  def of(
    cls, a: Any, beta: Any, log_decay: Any, key_norm: Any = 1.0
  ) -> "Problem":
    """From matrices [n, C, C], the gates [n, C] and key norms [n] behind."""
    truth = key_families.exact_inverse(np.asarray(a))
    envelope = _envelope(beta, log_decay, key_norm=key_norm)
    return cls(jnp.asarray(a), envelope, truth)

  def errors(
    self, spec: InverseSpec, implementation: str, *, once: bool = False
  ) -> MatrixErrors:
    """Of an inverse, beside its certificate; `once`: the program runs once."""
    found = _approximate_once if once else approximate
    # "auto" traces the kernels of every platform, of which a CPU takes none.
    if implementation == "auto" and jax.default_backend() == "cpu":
      implementation = "xla"
    x = found(self.a, self.envelope, spec, implementation)
    bound = _certify(self.a, x, self.envelope)
    return errors_of(np.asarray(x), self.truth, np.asarray(bound))


def errors_of(
  x: np.ndarray,  # [n, C, C], approximations
  truth: np.ndarray,  # [n, C, C] float64 inverses
  bound: np.ndarray,  # [n, C, C], on every entry of |T - X|
) -> MatrixErrors:
  """Compares approximations with the truth and with their certificates."""
  off = np.abs(np.where(np.isfinite(x), x, np.inf) - truth)
  bound = np.asarray(bound, np.float64)
  rows: Any = {"axis": -1}
  entries: Any = {"axis": (-1, -2)}
  return MatrixErrors(
    key_families.relative_error(x, truth),
    off.sum(**rows).max(**rows),
    bound.sum(**rows).max(**rows),
    (off > bound).sum(**entries),
    off.max(**entries),
    bound.max(**entries),
  )


# Apart, so that they are compiled once for all inverses.
_envelope = jax.jit(neumann_jax.envelope)
_certify = jax.jit(neumann_jax.certify)


def _approximate(
  a: jax.Array, envelope: jax.Array, spec: InverseSpec, implementation: str
) -> jax.Array:
  """The inverse of matrices [n, C, C] within their envelopes."""
  return neumann_jax.inverse(
    a, spec, envelope=envelope, implementation=implementation
  )


approximate = jax.jit(_approximate, static_argnums=(2, 3))
# What optimisation would save in one run is less than what it takes.
_approximate_once = jax.jit(
  _approximate,
  static_argnums=(2, 3),
  compiler_options={"xla_backend_optimization_level": 0},
)
