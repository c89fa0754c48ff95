"""Photographs degraded five ways and restored under a Gaussian prior.

The prior knows only a radial power spectrum and a mean, taken from other
photographs, so its posterior mean is known: the Wiener answer. That is the
yardstick here. The mean of posterior samples must approach it and one sample
must lie below it; neither is a bid for the best picture.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.data.degradations import Problem
from experiments.harness import progress
from posterior_jax import NFCConfig, metrics, priors

DEGRADED = "degraded"
WIENER = "posterior mean (Wiener)"
CALIBRATED = "NFC calibrated"
PAPER = "NFC, paper's settings shrunk"


@dataclasses.dataclass(frozen=True)
class RestorationSettings:
  """What is restored and how long it may take.

  Attributes:
    seed: of the noise and of the sampler.
    size: side of the photographs, 64 to 256.
    noise_std: of the measurement, pixels in [-1, 1].
    num_samples: calibrated samples of the first photograph, at least 2; the
      others get one.
    levels: noise levels of the calibrated sampler.
    tolerance: relative residual of its linear solves.
    paper_levels: levels of the paper's settings, shrunk from 200.
    paper_inner_steps: Langevin updates a level, shrunk from 200.
    photographs: which to restore.
    workers: operators restored at a time, each on about one core.
  """

  seed: int = 0
  size: int = 256
  noise_std: float = 0.05
  num_samples: int = 4
  levels: int = 30
  tolerance: float = 1e-2
  paper_levels: int = 10
  paper_inner_steps: int = 20
  photographs: tuple[str, ...] = photographs.RESTORED
  workers: int = 2

  def __post_init__(self) -> None:
    for name in ("levels", "paper_levels", "paper_inner_steps", "workers"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
    if not self.noise_std > 0:
      raise ValueError(f"noise_std must be positive, got {self.noise_std}")
    if not 1e-7 <= self.tolerance <= 0.1:
      raise ValueError(
        f"tolerance must lie in [1e-7, 0.1], got {self.tolerance}"
      )
    if not self.photographs or set(self.photographs) - set(photographs.FILES):
      raise ValueError(
        f"photographs must be among {', '.join(photographs.FILES)}; got "
        f"{', '.join(self.photographs) or 'none'}"
      )
    if not 64 <= self.size <= 256:
      raise ValueError(f"size must lie in [64, 256], got {self.size}")
    if self.num_samples < 2:
      raise ValueError(f"num_samples must be at least 2: {self.num_samples}")
    if set(self.photographs) & set(photographs.PRIOR):
      raise ValueError(
        "photographs must not be among the prior's own, "
        f"{', '.join(photographs.PRIOR)}; got {', '.join(self.photographs)}"
      )


class Row(NamedTuple):
  """One photograph restored by one method.

  Attributes:
    operator: how it was degraded.
    photograph: which.
    method: DEGRADED, WIENER or a sampler's name.
    samples: how many were drawn; 0 for an answer that is not drawn.
    psnr: of the answer or of one sample, in dB.
    ssim: likewise.
    residual: |y - A x|^2 / (m noise_std^2), likewise; near 1 for the truth.
    psnr_mean: of the mean of the samples; None below two.
    ssim_mean: likewise.
    seconds: of all photographs and samples together, once compiled.
  """

  operator: str
  photograph: str
  method: str
  samples: int
  psnr: float
  ssim: float
  residual: float
  psnr_mean: float | None
  ssim_mean: float | None
  seconds: float


class Pictures(NamedTuple):
  """What one operator's page shows, images [H, W, 3] in [-1, 1].

  Attributes:
    truth: the first photograph.
    degraded: its measurement at the image's size.
    wiener: its posterior mean.
    sample: one calibrated sample.
    mean: the mean of its calibrated samples.
    std: their standard deviation, [H, W], root mean square over channels.
    paper: one sample of the paper's settings, shrunk.
  """

  truth: np.ndarray
  degraded: np.ndarray
  wiener: np.ndarray
  sample: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  paper: np.ndarray


class _Answer(NamedTuple):
  """One method's images: [N, H, W, 3], and all samples of the first."""

  method: str
  images: jax.Array
  seconds: float
  several: jax.Array | None = None


def study(
  settings: RestorationSettings, tick: progress.Tick = progress.silent
) -> tuple[list[Row], dict[str, Pictures]]:
  """Restores every photograph from every degradation.

  Args:
    settings: what to do.
    tick: called before each operator, from several threads.

  Returns:
    A row for every operator, photograph and method, and the pictures of every
    operator.
  """
  prior = degradations.build_prior(settings.size)
  problems = degradations.build_problems(
    settings.photographs, settings.size, settings.noise_std, settings.seed
  )

  def one(problem: Problem) -> tuple[list[Row], Pictures]:
    tick(f"restoration: {problem.name}")
    answers = _restore(problem, settings, prior)
    return _rows(problem, settings, answers), _pictures(problem, answers)

  with concurrent.futures.ThreadPoolExecutor(settings.workers) as pool:
    done = list(pool.map(one, problems))
  rows = [row for found, _ in done for row in found]
  return rows, {p.name: shown for p, (_, shown) in zip(problems, done)}


def _restore(
  problem: Problem, settings: RestorationSettings, prior: priors.GaussianPrior
) -> list[_Answer]:
  observation = problem.observation
  count = len(problem.truth)
  repeats = settings.num_samples - 1
  # The first photograph is repeated, so that one batch holds all samples.
  order = np.array([0] * repeats + list(range(count)))
  batch = dataclasses.replace(observation, y=observation.y[order])
  keys = jax.random.split(jax.random.key(settings.seed))
  wiener, wiener_seconds = _timed(
    lambda o: priors.posterior_mean(prior, o)[0], observation
  )
  calibrated = NFCConfig.calibrated(
    levels=settings.levels, tolerance=settings.tolerance
  )
  paper = NFCConfig.paper(
    levels=settings.paper_levels, inner_steps=settings.paper_inner_steps
  )
  drawn, drawn_seconds = _sample(calibrated, prior, batch, keys[0])
  rough, rough_seconds = _sample(paper, prior, observation, keys[1])
  return [
    _Answer(DEGRADED, degradations.as_image(observation), 0.0),
    _Answer(WIENER, wiener, wiener_seconds),
    _Answer(CALIBRATED, drawn[repeats:], drawn_seconds, drawn[: repeats + 1]),
    _Answer(PAPER, rough, rough_seconds),
  ]


def _sample(
  config: NFCConfig,
  prior: priors.GaussianPrior,
  observation: posterior_jax.Observation,
  key: jax.Array,
) -> tuple[jax.Array, float]:
  """One sample of every observation, [N, H, W, 3], and its seconds."""
  sampler = posterior_jax.nfc(config, spectrum=prior.spectrum)

  def draw(observation: posterior_jax.Observation) -> jax.Array:
    return posterior_jax.run(sampler, prior.denoise, observation, key)[0][0]

  return _timed(draw, observation)


def _timed(
  function: Callable[..., jax.Array], *arguments: Any
) -> tuple[jax.Array, float]:
  compiled = jax.jit(function).lower(*arguments).compile()
  start = time.monotonic()
  result = jax.block_until_ready(compiled(*arguments))
  return result, time.monotonic() - start


def _rows(
  problem: Problem, settings: RestorationSettings, answers: list[_Answer]
) -> list[Row]:
  rows = []
  for answer in answers:
    x = answer.images
    psnr = metrics.psnr(x, problem.truth)
    ssim = metrics.ssim(x, problem.truth)
    residual = metrics.measurement_residual(x, problem.observation)
    for i, photograph in enumerate(settings.photographs):
      samples = int(answer.method in (CALIBRATED, PAPER))
      means: tuple[float | None, float | None] = (None, None)
      if i == 0 and answer.several is not None:
        samples = len(answer.several)
        mean = jnp.mean(answer.several, axis=0)
        truth = problem.truth[0]
        means = (
          float(metrics.psnr(mean, truth)),
          float(metrics.ssim(mean, truth)),
        )
      rows.append(
        Row(
          problem.name,
          photograph,
          answer.method,
          samples,
          float(psnr[i]),
          float(ssim[i]),
          float(residual[i]),
          *means,
          seconds=answer.seconds,
        )
      )
  return rows


def _pictures(problem: Problem, answers: list[_Answer]) -> Pictures:
  by_name = {answer.method: answer for answer in answers}
  several = by_name[CALIBRATED].several
  assert several is not None
  variance = jnp.var(several, axis=0, ddof=1)  # [H, W, 3]
  shown = (
    problem.truth[0],
    by_name[DEGRADED].images[0],
    by_name[WIENER].images[0],
    several[0],
    jnp.mean(several, axis=0),
    jnp.sqrt(jnp.mean(variance, axis=-1)),
    by_name[PAPER].images[0],
  )
  return Pictures(*(np.asarray(picture) for picture in shown))
