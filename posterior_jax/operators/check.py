"""A test of operators of one's own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax import fields
from posterior_jax.base import Operator

# Float32 products of images of a megapixel are right to about 1e-6.
TOLERANCE = 1e-4


class OperatorErrors(NamedTuple):
  """What `check_operator` measured, each relative.

  Attributes:
    linearity: of A (x + 2 x') against A x + 2 A x'.
    adjoint: of <A x, y> against <x, A^T y>, of |A x| |y|.
    solve: residual of a solve of the normal equations.
  """

  linearity: float
  adjoint: float
  solve: float


def check_operator(operator: Operator, *, seed: int = 0) -> OperatorErrors:
  """Tests that an operator is linear, and its parts those of one matrix.

  A wrong adjoint gives plausible pictures and wrong posteriors: run this once
  for every operator of your own.

  Args:
    operator: any.
    seed: of the random images, at least 0.

  Returns:
    The errors found, all at most 1e-4 (1e-3 of a solve).

  Raises:
    TypeError: if it is no `Operator`.
    ValueError: naming what is wrong: shapes, linearity, the adjoint, the gain,
      or the solve; or for a seed that is none.

  Example:
    >>> import posterior_jax as pj
    >>> operator = pj.operators.gaussian_blur((32, 32, 3), size=9, std=1.0)
    >>> pj.operators.check_operator(operator).adjoint < 1e-5
    True
  """
  if not isinstance(operator, Operator):
    raise TypeError(
      f"operator must be a posterior_jax Operator, got "
      f"{type(operator).__name__}"
    )
  if fields.whole("seed", seed) < 0:
    raise ValueError(f"seed must be at least 0, got {seed}")
  # Compiled whole: operation by operation each would be a program of its own.
  forward, adjoint_of = jax.jit(operator.forward), jax.jit(operator.adjoint)
  # By numpy, and so are sums: each of those would be a program too.
  rng = np.random.default_rng(seed)
  # Two leading axes, as samplers have them.
  x, other = rng.standard_normal((2, 2, 1, *operator.image_shape))
  image = _of_shape("forward", forward(x), operator.measurement_shape)
  if not _norm(image) > 0:
    raise ValueError(
      "forward must not be 0 of every image, it measured nothing"
    )
  both, second = (
    np.asarray(forward(z), np.float64) for z in (x + 2 * other, other)
  )
  linearity = _relative(both - image - 2 * second, image)
  if not linearity <= TOLERANCE:
    raise ValueError(
      f"forward must be linear: forward(x + 2 z) differs from forward(x) + "
      f"2 forward(z) by {linearity:.2g} of its size"
    )
  # Half of y along A x, which shows a wrong scale, half at random.
  noise = rng.standard_normal(image.shape)
  y = image + noise * (_norm(image) / _norm(noise))
  back = _of_shape("adjoint", adjoint_of(y), operator.image_shape)
  gap = np.vdot(image, y) - np.vdot(x, back)
  adjoint = float(abs(gap) / (_norm(image) * _norm(y)))
  if not adjoint <= TOLERANCE:
    raise ValueError(
      f"adjoint must be the transpose of forward: <A x, y> and <x, A^T y> "
      f"differ by {adjoint:.2g} of |A x| |y|"
    )
  return OperatorErrors(linearity, adjoint, _check_solve(operator, x))


def _check_solve(operator: Operator, x: np.ndarray) -> float:
  gain = np.asarray(operator.gram_gain)
  if not (np.isfinite(gain).all() and (gain >= 0).all()):
    raise ValueError(
      "gram_gain must be finite and non-negative, [], [H, W] or [..., H, W, "
      f"C], got {list(gain.shape)} from {gain.min():.3g} to {gain.max():.3g}"
    )

  @jax.jit
  def residual(x: jax.Array) -> jax.Array:
    found, _ = operator.normal_solve(
      x, precision=jnp.ones(()), noise_std=jnp.ones(()), max_iterations=1000
    )
    return operator.adjoint(operator.forward(found)) + found - x

  error = _relative(np.asarray(residual(x)), x)
  if not error <= 10 * TOLERANCE:
    raise ValueError(
      f"normal_solve must solve (A^T A / s^2 + P) x = b, its answer leaves "
      f"{error:.2g} of b"
    )
  return error


def _of_shape(
  name: str, found: jax.Array, shape: tuple[int, int, int]
) -> np.ndarray:
  if found.shape != (2, 1, *shape):
    raise ValueError(
      f"{name} must return [2, 1, {', '.join(map(str, shape))}] for a batch of "
      f"[2, 1], got {list(found.shape)}"
    )
  if jnp.iscomplexobj(found):
    raise ValueError(f"{name} must return real numbers, got {found.dtype}")
  values = np.asarray(found, np.float64)
  if not np.isfinite(values).all():
    raise ValueError(f"{name} must return finite numbers, it does not")
  return values


def _norm(x: np.ndarray) -> np.float64:
  return np.sqrt(np.sum(np.square(x, dtype=np.float64)))


def _relative(error: np.ndarray, x: np.ndarray) -> float:
  return float(_norm(error) / max(_norm(x), 1e-30))
