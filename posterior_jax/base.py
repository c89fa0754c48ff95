"""The contracts of the package: what flows between its parts.

Axis letters: B posterior samples per observation, N observations, H W C image
height, width and channels, h w measurement height and width. Pixels lie in
[-1, 1]; every standard deviation (`sigma`, `noise_std`) is in that unit.
"""

import abc
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

# denoise(x [M, H, W, C], sigma [M]) -> E[x0 | x0 + sigma n = x] [M, H, W, C]
Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
# x -> K x, a linear map known by its products alone
Linear = Callable[[jax.Array], jax.Array]


class SolveInfo(NamedTuple):
  """How a linear solve went.

  Attributes:
    iterations: int32 scalar, 0 for a closed form.
    relative_residual: float32 scalar, worst ||b - K x|| / ||b|| of the batch.
  """

  iterations: jax.Array
  relative_residual: jax.Array

  @classmethod
  def closed_form(cls) -> "SolveInfo":
    """Of what needed no iteration: zeros, of the dtypes that a scan stacks."""
    return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


class Operator(abc.ABC):
  """A measurement A of an image; concrete kinds are registered pytrees.

  Linear, but for one of `operators.nonlinear`, whose `tangent` is.

  Arrays (kernels, masks, matrices) are leaves, so that new ones never retrace;
  shapes and the kind are static. Every method accepts any leading axes.
  """

  image_shape: tuple[int, int, int]  # (H, W, C), static

  @property
  @abc.abstractmethod
  def measurement_shape(self) -> tuple[int, int, int]:
    """(h, w, C) of one measurement."""

  @property
  def pictorial(self) -> bool:
    """Whether measured pixels are weighted means of the image's, in [-1, 1]."""
    return False

  @property
  def is_linear(self) -> bool:
    """Whether A is a matrix; else its `tangent` is."""
    return True

  def tangent(self, x: jax.Array) -> "Operator":
    """The linear operator that A is near x [..., H, W, C]: A where linear."""
    del x
    return self

  @property
  def margin(self) -> int:
    """Pixels of the image beyond every side of the picture, mostly 0."""
    return 0

  def interior(self, x: jax.Array) -> jax.Array:
    """What the picture shows of an image: [..., H, W, C] less the margin."""
    height, width = (n - self.margin for n in self.image_shape[:2])
    return x[..., self.margin : height, self.margin : width, :]

  @property
  def observed(self) -> jax.Array:
    """1 where the measurement holds data, broadcastable to [h, w, C]."""
    return jnp.ones((), jnp.float32)

  @property
  def gridded(self) -> bool:
    """Whether a measurement is a picture, whose spectrum a band can cut."""
    return True

  @property
  @abc.abstractmethod
  def gram_gain(self) -> jax.Array:
    """Fourier diagonal of A^T A: gain of each frequency, [] or [H, W]."""

  @abc.abstractmethod
  def forward(self, x: jax.Array) -> jax.Array:
    """A x: [..., H, W, C] -> [..., h, w, C]."""

  @abc.abstractmethod
  def adjoint(self, y: jax.Array) -> jax.Array:
    """The exact transpose A^T y: [..., h, w, C] -> [..., H, W, C]."""

  @abc.abstractmethod
  def normal_solve(
    self,
    rhs: jax.Array,
    *,
    precision: jax.Array,
    noise_std: jax.Array,
    tolerance: float = 1e-6,
    max_iterations: int = 300,
  ) -> tuple[jax.Array, SolveInfo]:
    """Solves (A^T A / noise_std^2 + P) x = rhs, P diagonal in Fourier space.

    Args:
      rhs: [..., H, W, C].
      precision: diagonal of P on the full FFT grid, [], [H, W] or
        [..., H, W, C] with axes that broadcast against rhs's, positive, in
        1/pixel^2.
      noise_std: scalar measurement noise.
      tolerance: relative residual at which conjugate gradients stop.
      max_iterations: their limit.

    Returns:
      x [..., H, W, C] and how the solve went.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
  """What was measured: y = A x0 + noise_std n.

  Attributes:
    y: [N, h, w, C], floating point, of images x0 with pixels in [-1, 1].
    operator: the measurement A.
    noise_std: scalar, > 0, on the scale of y.

  Raises:
    ValueError: for a noise_std of Python or NumPy that is not positive and
      finite; what else can be wrong, `run` says.

  Example:
    >>> import jax.numpy as jnp
    >>> import posterior_jax as pj
    >>> operator = pj.operators.super_resolution((8, 8, 3), factor=2)
    >>> observation = pj.Observation(jnp.zeros((1, 4, 4, 3)), operator, 0.05)
    >>> observation.operator.measurement_shape
    (4, 4, 3)
  """

  y: jax.Array
  operator: Operator
  noise_std: jax.Array | float

  def __post_init__(self) -> None:
    # As far as it is known without waiting for a device; `check_observation`
    # says the rest. JAX puts what it likes into a pytree's fields, axes of
    # vmap among them, which no operator stands beside.
    known = isinstance(self.noise_std, str | int | float | np.generic)
    if known and isinstance(self.operator, Operator):
      _check_noise(self.noise_std)

  def linearised(self, x: jax.Array) -> "Observation":
    """What it is near x: y - A(x) + J x by the tangent J of A.

    Args:
      x: [..., N, H, W, C].

    Returns:
      An observation whose y has the leading axes of x; itself where A is
      linear.
    """
    if self.operator.is_linear:
      return self
    tangent = self.operator.tangent(x)
    y = self.y - self.operator.forward(x) + tangent.forward(x)
    return Observation(y, tangent, self.noise_std)


def check_observation(observation: Observation) -> None:
  """Refuses an observation that no sampler can use, in one sentence.

  Values are checked on concrete arrays only.

  Args:
    observation: y [N, h, w, C], its operator and noise.

  Raises:
    TypeError: if the operator is not an `Operator` or y is no array of
      floating point.
    ValueError: for a measurement of the wrong shape, not finite or far beyond
      [-1, 1], or a noise level that is not positive.

  Warns:
    UserWarning: where a measured picture looks as if its pixels were in [0, 1].
  """
  y, operator, noise_std = (
    observation.y,
    observation.operator,
    observation.noise_std,
  )
  if not hasattr(y, "dtype") or not hasattr(y, "shape"):
    raise TypeError(f"y must be an array, got {type(y).__name__}")
  if not jnp.issubdtype(y.dtype, jnp.floating):
    raise TypeError(
      f"y must be floating point, of pixels in [-1, 1], got dtype {y.dtype}"
    )
  if not isinstance(operator, Operator):
    raise TypeError(
      f"operator must be a posterior_jax Operator, got "
      f"{type(operator).__name__}"
    )
  expected = operator.measurement_shape
  if y.ndim != 4 or y.shape[1:] != expected:
    raise ValueError(
      f"y must have shape [N, {', '.join(map(str, expected))}] for this "
      f"operator, got {y.shape}"
    )
  if y.shape[0] < 1:
    raise ValueError("y must hold at least one observation, N is 0")
  # Values are known only outside of a transformation; shapes always are.
  if not isinstance(noise_std, jax.core.Tracer):
    _check_noise(noise_std)
  if not isinstance(y, jax.core.Tracer):
    if not np.isfinite(np.asarray(y)).all():
      raise ValueError("y must be finite everywhere, dropped pixels included")
    if operator.pictorial and not isinstance(noise_std, jax.core.Tracer):
      # Ones made under a transformation would be traced, though known.
      with jax.ensure_compile_time_eval():
        observed = operator.observed
      if not isinstance(observed, jax.core.Tracer):
        kept = np.broadcast_to(np.asarray(observed), expected) > 0
        _check_range(np.asarray(y)[:, kept], float(noise_std))


def _check_noise(noise_std: Any) -> None:
  number = np.asarray(noise_std)
  numeric = number.ndim == 0 and number.dtype.kind in "fiu"
  if not (numeric and 0 < number < np.inf):
    raise ValueError(
      f"noise_std must be a positive, finite scalar, got {noise_std!r}"
    )


def _check_range(y: np.ndarray, noise_std: float) -> None:
  """Refuses observed pixels of another unit, of a measured picture."""
  # Gaussian priors and strong noise go beyond 1, and no test image beyond 8.
  reach = np.abs(y).max()
  if reach > 8 * (1 + noise_std):
    raise ValueError(
      f"y must hold pixels in [-1, 1], it reaches {reach:.4g}; levels of 0 to "
      "255 become such by y / 127.5 - 1, and noise_std by / 127.5"
    )
  # Every photograph has something darker than the middle grey, unless noise
  # hides it; a constant one is no photograph.
  low, high = np.quantile(y, (0.01, 0.99))
  unit = low > -3 * noise_std and high < 1 + 3 * noise_std
  if noise_std <= 0.1 and unit and high - low > 0.2 + 6 * noise_std:
    warnings.warn(
      f"y looks as if its pixels were in [0, 1] (from {low:.2f} to "
      f"{high:.2f}), and they must be in [-1, 1]: 2 y - 1, and 2 noise_std",
      stacklevel=4,
    )


def misfit(observation: Observation, x: jax.Array) -> jax.Array:
  """y - A x where the measurement holds data, 0 elsewhere.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].

  Returns:
    [..., N, h, w, C].
  """
  operator = observation.operator
  return operator.observed * (observation.y - operator.forward(x))


def normalised_residual(observation: Observation, x: jax.Array) -> jax.Array:
  """||y - A x||^2 / (m noise_std^2) over the m observed entries.

  Near 1 for the true image and below 1 for one that fits the noise.

  Args:
    observation: y [N, h, w, C].
    x: [..., N, H, W, C].

  Returns:
    [..., N].
  """
  operator = observation.operator
  observed = jnp.broadcast_to(operator.observed, operator.measurement_shape)
  # What dropped pixels hold is no data: neither its square nor its count.
  total = jnp.sum(misfit(observation, x) ** 2, axis=(-3, -2, -1))
  return total / (jnp.sum(observed) * observation.noise_std**2)


class State(Protocol):
  """A NamedTuple whose first two fields are those of `SamplerState`."""

  @property
  def x(self) -> jax.Array:
    """[B, N, H, W, C]."""

  @property
  def level(self) -> jax.Array:
    """int32 scalar."""


class SamplerState(NamedTuple):
  """What the next step needs.

  Attributes:
    x: [B, N, H, W, C] float32, the image at the noise of `level`.
    level: int32 scalar, how many levels have been done.
    average: [B, N, H, W, C], mean of the images of the held levels so far;
      None where no level is held.
  """

  x: jax.Array
  level: jax.Array
  average: jax.Array | None = None


class Info(NamedTuple):
  """Diagnostics of one step; stacked over steps by `run`.

  Attributes:
    sigma: noise level the step started from.
    residual: [B, N] ||y - A x0||^2 / (m noise_std^2) of the step's image.
    solve: how the inner linear solve went (zeros where there is none).
    band_energy: [B, N, K], the residual by radial band of the measurement's
      spectrum, low to high (`diagnostics.band_energy`); None where a sampler
      does not say.
    calls: of the denoiser in this step, for every image.
    products: with the denoiser's Jacobian (one VJP each), likewise.
    trajectory: [B, N, H, W, C], the step's result, from `recorded` samplers
      only.
    choice: [B] int32, the number of the kernel after the step, from samplers of
      `uncertain` only.
  """

  sigma: jax.Array
  residual: jax.Array
  solve: SolveInfo
  band_energy: jax.Array | None = None
  calls: jax.Array | int = 0
  products: jax.Array | int = 0
  trajectory: jax.Array | None = None
  choice: jax.Array | None = None

  @property
  def evaluations(self) -> jax.Array | int:
    """Network evaluations: calls and Jacobian products together."""
    return self.calls + self.products


class Sampler(NamedTuple):
  """A posterior sampler as pure functions, for `run` or a loop of one's own.

  `init` begins with the key, as whatever draws does in `jax.random`; `step` is
  the body of a scan, so it begins with the state that is carried and ends with
  the key, which is new for every step.

  Attributes:
    init: (key, observation, batch) -> SamplerState, or another `State`.
    step: (state, denoise, observation, key) -> (state, Info).
    num_steps: how many steps a run takes.
  """

  init: Callable[[chex.PRNGKey, Observation, int], State]
  step: Callable[..., tuple[State, Any]]
  num_steps: int
