"""What is asked for, and the names of the hypotheses."""

import dataclasses

from experiments.harness.settings import Checked, setting
from posterior_jax.operators import frozen

FEW, WRONG, NOISY = "few calls", "wrong kernel", "strong noise"
APART, MIXTURES, WAVELETS = "tau and step", "mixtures", "wavelets"
PHASES = "phase retrieval"
GAUSSIAN = "Gaussian"
KERNELS = (GAUSSIAN, *frozen.PATHS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is computed.

  Attributes:
    size: side of the images.
    kernels: of the blur in closed form, of KERNELS.
    levels: numbers of noise levels, a network call each.
    noise_std: of the measurement.
    strong_noise_std: likewise, for the hypothesis on noise.
    tau_shares: noise that the likelihood assumes, as shares of that.
    turn: of the true kernel, in degrees, for the hypothesis on the operator.
    published_levels: of the published setting, for tau and step.
    mixtures: random problems of 8 dimensions for 1, 2 and 4 measurements.
    particles: of a run on one.
    mixture_levels: numbers of noise levels there.
    folder: of photographs, "" for none.
    pictures: how many, the first by name.
    crop: side of their middle that is restored.
    phase_levels: numbers of noise levels from which their phases are retrieved.
    prior: a file of `prior_files.load`, "large", or "" for the small
      shipped one.
    seed: of noise and samplers.
    workers: programs compiled at a time.
  """

  size: int = setting(at_least=32, at_most=512)
  kernels: tuple[str, ...] = setting(among=KERNELS, some=True)
  levels: tuple[int, ...] = setting(at_least=1, some=True)
  noise_std: float = setting(above=0)
  strong_noise_std: float = setting(above=0)
  tau_shares: tuple[float, ...] = setting(above=0, some=True)
  turn: float = setting(at_least=-90, at_most=90)
  published_levels: int = setting(at_least=2)
  mixtures: int = setting(at_least=0)
  particles: int = setting(at_least=2)
  mixture_levels: tuple[int, ...] = setting(at_least=2)
  folder: str
  pictures: int = setting(at_least=2)
  crop: int = setting(at_least=64, multiple_of=8)
  phase_levels: tuple[int, ...] = setting(at_least=2)
  prior: str
  seed: int
  workers: int = setting(at_least=1)
