"""From a noisy image to a prediction of the clean one.

`clean` is the only place that calls a denoiser, `clean_with_vjp` the only one
that differentiates it; `predict` chooses between one call and an ODE.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from posterior_jax.base import Denoiser, Linear
from posterior_jax.foreign_files.messages import first_line

Predictor = Literal["denoise", "euler", "heun", "dpm_solver_2m"]


def clean(denoise: Denoiser, x: jax.Array, sigma: jax.Array) -> jax.Array:
  """D(x, sigma) of images with any leading axes.

  Args:
    denoise: D, (x [M, H, W, C], sigma [M]) -> [M, H, W, C].
    x: [..., H, W, C] at noise sigma.
    sigma: > 0, scalar or one of every image, [..., 1, 1, 1].

  Returns:
    [..., H, W, C] float32.

  Raises:
    ValueError: if the denoiser returns something of another shape or type, or
      is no function of JAX.
  """
  flat = x.reshape(-1, *x.shape[-3:])  # [M, H, W, C]
  levels = jnp.ravel(jnp.asarray(sigma, flat.dtype))  # [1] or [M]
  levels = jnp.broadcast_to(levels, flat.shape[:1])
  try:
    found = denoise(flat, levels)
  # What NumPy and `if` say of a traced array.
  except jax.errors.JAXTypeError as error:
    raise ValueError(
      "denoise must consist of JAX operations, jnp in place of np and "
      f"jnp.where in place of if: {first_line(error).split('. ')[0]}"
    ) from error
  if getattr(found, "shape", None) != flat.shape:
    raise ValueError(
      f"denoise must return images of shape {flat.shape}, as it was given, "
      f"got {getattr(found, 'shape', type(found).__name__)}"
    )
  if not jnp.issubdtype(found.dtype, jnp.floating):
    raise ValueError(
      f"denoise must return floating point, got dtype {found.dtype}"
    )
  return found.astype(jnp.float32).reshape(x.shape)


def turned(denoise: Denoiser, way: jax.Array) -> Denoiser:
  """D of the image turned, turned back: a network errs in another way.

  Args:
    denoise: D.
    way: scalar, 0 to 7: 1 mirrors rows, 2 columns, 4 transposes, which an image
      that is not square is not.
  """
  way = jnp.asarray(way, jnp.int32)

  # One call between two choices: eight branches would be eight networks.
  def mirrored(x: jax.Array) -> jax.Array:
    x = jnp.where(way & 1, jnp.flip(x, -3), x)
    return jnp.where(way & 2, jnp.flip(x, -2), x)

  def transposed(x: jax.Array) -> jax.Array:
    square = x.shape[-3] == x.shape[-2]
    return jnp.where(way & 4, jnp.swapaxes(x, -3, -2), x) if square else x

  def answer(x: jax.Array, sigma: jax.Array) -> jax.Array:
    return transposed(mirrored(denoise(mirrored(transposed(x)), sigma)))

  return answer


def clean_with_vjp(
  denoise: Denoiser, x: jax.Array, sigma: jax.Array, *, clip: bool = False
) -> tuple[jax.Array, Linear]:
  """The clean image and the transposed Jacobian of the denoiser: one call.

  Args:
    denoise: D, (x [M, H, W, C], sigma [M]) -> [M, H, W, C].
    x: [..., H, W, C] at noise sigma.
    sigma: scalar > 0.
    clip: whether the clean image is clipped to [-1, 1]; the Jacobian is then
      that of the clipped image, zero where a pixel saturates.

  Returns:
    x0 = D(x, sigma), [..., H, W, C] float32, and v -> (dx0/dx)^T v on images
    of that shape, one vector-Jacobian product (VJP) each.

  Raises:
    ValueError: if the denoiser returns something of another shape.
  """

  def answer(x: jax.Array) -> jax.Array:
    x0 = clean(denoise, x, sigma)
    return jnp.clip(x0, -1.0, 1.0) if clip else x0

  x0, transposed = jax.vjp(answer, x)
  return x0, lambda v: transposed(v)[0]


def linearise(
  denoise: Denoiser, x: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, Linear]:
  """The clean image and the covariance around it, C = sigma^2 (dD/dx)^T.

  For the exact denoiser this is Cov[x0 | x] (Tweedie's second-order formula,
  as in MMPS, Rozet et al. 2024). The transpose, which a VJP gives, will do:
  the Jacobian of an exact denoiser is symmetric, that of a network nearly so.

  Args:
    denoise: D.
    x: [..., H, W, C] at noise sigma.
    sigma: scalar > 0.

  Returns:
    D(x, sigma), and v -> C v of the same shape, one VJP.
  """
  x0, product = clean_with_vjp(denoise, x, sigma)
  return x0, lambda v: sigma**2 * product(v)


def predict(
  denoise: Denoiser,
  x: jax.Array,
  sigma: jax.Array,
  *,
  kind: Predictor,
  steps: int,
  sigma_end: float,
  rho: float,
) -> jax.Array:
  """One denoiser call, or the probability-flow ODE down to `sigma_end`.

  The ODE of the variance-exploding process is dx/dsigma = (x - D(x, sigma)) /
  sigma, on `steps` steps of a polynomial ramp. As in DAPS the end point is
  returned as it is, without a last denoising.

  Args:
    denoise: D, (x [M, H, W, C], sigma [M]) -> [M, H, W, C].
    x: [..., H, W, C] at noise sigma.
    sigma: scalar > 0.
    kind: "denoise" is D itself, the posterior mean; "euler" and "heun" solve
      the ODE with one and two calls per step; "dpm_solver_2m" is the multistep
      second-order DPM-Solver++ with one (Lu et al. 2022).
    steps: of the ODE.
    sigma_end: where the ODE stops; a level already below it takes no step.
    rho: exponent of the ramp.

  Returns:
    [..., H, W, C] float32.

  Raises:
    ValueError: if the denoiser returns something of another shape.
  """
  if kind == "denoise":
    return clean(denoise, x, sigma)
  # A level below the end has nowhere to go: its nodes are all the same.
  end = jnp.minimum(sigma_end, sigma)
  fraction = jnp.arange(steps + 1, dtype=x.dtype) / steps
  nodes = sigma ** (1 / rho) * (1 - fraction) + end ** (1 / rho) * fraction
  nodes = nodes**rho  # [steps + 1]
  step = {"euler": _euler, "heun": _heun, "dpm_solver_2m": _dpm_solver_2m}[kind]

  def body(i: jax.Array, carry: tuple) -> tuple:
    return step(functools.partial(clean, denoise), nodes, i, *carry)

  return lax.fori_loop(0, steps, body, (x, jnp.zeros_like(x)))[0]


def calls(kind: Predictor, steps: int) -> int:
  """How often `predict` calls the denoiser."""
  return {"denoise": 1, "heun": 2 * steps}.get(kind, steps)


def _euler(clean, nodes, i, x, previous):
  slope = (x - clean(x, nodes[i])) / nodes[i]
  return x + (nodes[i + 1] - nodes[i]) * slope, previous


def _heun(clean, nodes, i, x, previous):
  width = nodes[i + 1] - nodes[i]
  first = (x - clean(x, nodes[i])) / nodes[i]
  ahead = x + width * first
  second = (ahead - clean(ahead, nodes[i + 1])) / nodes[i + 1]
  return x + width * (first + second) / 2, previous


def _dpm_solver_2m(clean, nodes, i, x, previous):
  """x' = (s'/s) x + (1 - s'/s) D, D extrapolated in log sigma."""
  now = clean(x, nodes[i])
  ratio = nodes[i + 1] / nodes[i]
  last = jnp.log(nodes[jnp.maximum(i - 1, 0)] / nodes[i])
  # Zero on the first step, and where a level below sigma_end does not move.
  reach = jnp.where(
    (i > 0) & (last > 0), -jnp.log(ratio) / jnp.where(last > 0, last, 1), 0
  )
  ahead = now + 0.5 * reach * (now - previous)
  return ratio * x + (1 - ratio) * ahead, now
