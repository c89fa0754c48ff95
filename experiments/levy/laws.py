"""Laws of the increments of a signal: x_k = x_{k-1} + u_k from x_0 = 0.

All but the Gaussian are mixtures of Gaussians of random variance q: given q a
signal and its measurement are Gaussian together, given u the variances are
independent and of known laws. That is all a Gibbs sampler needs. One of them
has an atom: an increment is 0 with probability 1 - p, and q = 0 says so.
"""

import abc
import dataclasses

import numpy as np

_LEAST = 1e-9  # |u| over its scale: 1 / |u| overflows below


@dataclasses.dataclass(frozen=True)
class Law(abc.ABC):
  """A law of increments.

  Attributes:
    scale: of u, in its unit.
  """

  scale: float

  @property
  @abc.abstractmethod
  def variance(self) -> float:
    """Of u."""

  @property
  def share(self) -> float:
    """Probability p that u is not 0."""
    return 1.0

  @abc.abstractmethod
  def draw(
    self, rng: np.random.Generator, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Increments of a shape."""

  @abc.abstractmethod
  def log_density(self, u: np.ndarray) -> np.ndarray:
    """log p(u), up to a constant; -inf where u has an atom and is beside it."""

  def start(self, shape: tuple[int, ...]) -> np.ndarray:
    """Variances to begin a chain with: those of u where it is not 0."""
    return np.full(shape, self.variance / self.share)

  @abc.abstractmethod
  def mixed(self, rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """Variances q given increments, where those are not 0; new ones else."""


@dataclasses.dataclass(frozen=True)
class Gaussian(Law):
  """N(0, scale^2)."""

  @property
  def variance(self) -> float:
    """scale^2."""
    return self.scale**2

  def draw(
    self, rng: np.random.Generator, shape: tuple[int, ...]
  ) -> np.ndarray:
    """As of the class."""
    return self.scale * rng.standard_normal(shape)

  def log_density(self, u: np.ndarray) -> np.ndarray:
    """-u^2 / (2 scale^2)."""
    return -0.5 * (u / self.scale) ** 2

  def mixed(self, rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """The one variance."""
    return self.start(u.shape)


@dataclasses.dataclass(frozen=True)
class Laplace(Law):
  """exp(-|u| / scale) / (2 scale): q is exponential of mean 2 scale^2."""

  @property
  def variance(self) -> float:
    """2 scale^2."""
    return 2 * self.scale**2

  def draw(
    self, rng: np.random.Generator, shape: tuple[int, ...]
  ) -> np.ndarray:
    """As of the class."""
    return rng.laplace(0, self.scale, shape)

  def log_density(self, u: np.ndarray) -> np.ndarray:
    """-|u| / scale."""
    return -np.abs(u) / self.scale

  def mixed(self, rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """1 / q is inverse Gaussian of mean 1 / (scale |u|), shape 1 / scale^2."""
    size = np.maximum(np.abs(u), _LEAST * self.scale)
    return 1 / rng.wald(1 / (self.scale * size), self.scale**-2)


@dataclasses.dataclass(frozen=True)
class Student(Law):
  """Student's t of `degrees` > 2: q is scale^2 degrees / chi^2_degrees."""

  degrees: int = 3

  @property
  def variance(self) -> float:
    """scale^2 degrees / (degrees - 2)."""
    return self.scale**2 * self.degrees / (self.degrees - 2)

  def draw(
    self, rng: np.random.Generator, shape: tuple[int, ...]
  ) -> np.ndarray:
    """As of the class."""
    return self.scale * rng.standard_t(self.degrees, shape)

  def log_density(self, u: np.ndarray) -> np.ndarray:
    """-(degrees + 1) / 2 log(1 + u^2 / (degrees scale^2))."""
    square = (u / self.scale) ** 2 / self.degrees
    return -(self.degrees + 1) / 2 * np.log1p(square)

  def mixed(self, rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """(degrees scale^2 + u^2) / chi^2 of degrees + 1."""
    total = self.degrees * self.scale**2 + u**2
    return total / rng.chisquare(self.degrees + 1, u.shape)


@dataclasses.dataclass(frozen=True)
class SpikeAndSlab(Law):
  """0 with probability 1 - p, else Laplace (Bernoulli-Laplace)."""

  p: float = 0.1

  @property
  def slab(self) -> Laplace:
    """The law where u is not 0."""
    return Laplace(self.scale)

  @property
  def variance(self) -> float:
    """2 p scale^2."""
    return self.p * self.slab.variance

  @property
  def share(self) -> float:
    """P(u is not 0)."""
    return self.p

  def draw(
    self, rng: np.random.Generator, shape: tuple[int, ...]
  ) -> np.ndarray:
    """As of the class."""
    return (rng.uniform(size=shape) < self.p) * self.slab.draw(rng, shape)

  def log_density(self, u: np.ndarray) -> np.ndarray:
    """NaN: what is 0 and what is not have densities that do not compare."""
    return np.full_like(u, np.nan)

  def mixed(self, rng: np.random.Generator, u: np.ndarray) -> np.ndarray:
    """As of the slab where u is not 0, else the slab's prior."""
    prior = rng.exponential(2 * self.scale**2, u.shape)
    return np.where(u != 0, self.slab.mixed(rng, u), prior)


# By name, scaled as in the paper: Gaussian variance 1/4, Laplace and Student's
# t of scale 1, the latter of 3 degrees (of 1 and 2 no mean square exists).
LAWS: dict[str, Law] = {
  "Gaussian": Gaussian(0.5),
  "Laplace": Laplace(1.0),
  "Student's t": Student(1.0),
  "spike and slab": SpikeAndSlab(1.0),
}
