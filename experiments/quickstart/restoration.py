"""Photographs degraded five ways and restored under a Gaussian prior.

The prior knows only a radial power spectrum and a mean, taken from other
photographs, so its posterior mean is known: the Wiener answer. That is the
yardstick here. The mean of posterior samples must approach it and one sample
must lie below it; neither is a bid for the best picture.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.data.degradations import Problem
from experiments.harness import progress, threads
from experiments.harness.settings import Checked, setting
from posterior_jax import NFCConfig, Observation, metrics, priors

DEGRADED = "degraded"
WIENER = "posterior mean (Wiener)"
CALIBRATED = "NFC calibrated"
PAPER = "NFC, paper's settings shrunk"

# By column of the report: [H, W, 3] in [-1, 1], the spread [H, W].
Pictures = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class RestorationSettings(Checked):
  """What is restored and how long it may take.

  Attributes:
    seed: of the noise and of the sampler.
    size: side of the photographs.
    noise_std: of the measurement, pixels in [-1, 1].
    num_samples: calibrated samples of the first photograph; the others get
      one.
    levels: noise levels of the calibrated sampler.
    tolerance: relative residual of its linear solves.
    paper_levels: levels of the paper's settings, shrunk from 200.
    paper_inner_steps: Langevin updates a level, shrunk from 200.
    photographs: which to restore, none of the prior's own.
    workers: programs compiled at a time, each on about one core.
  """

  seed: int = 0
  size: int = setting(256, at_least=64, at_most=256)
  noise_std: float = setting(0.05, above=0)
  num_samples: int = setting(4, at_least=2)
  levels: int = setting(30, at_least=1)
  tolerance: float = setting(1e-2, at_least=1e-7, at_most=0.1)
  paper_levels: int = setting(10, at_least=1)
  paper_inner_steps: int = setting(20, at_least=1)
  photographs: tuple[str, ...] = setting(
    photographs.RESTORED, among=photographs.FILES, some=True
  )
  workers: int = setting(2, at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if set(self.photographs) & set(photographs.PRIOR):
      raise ValueError(
        "photographs must not be among the prior's own, "
        f"{', '.join(photographs.PRIOR)}; got {', '.join(self.photographs)}"
      )


class Restored(NamedTuple):
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


class Method(NamedTuple):
  """A way to restore.

  Attributes:
    restore: observation -> images [N, H, W, 3].
    samples: that it draws of the first photograph; 0: it draws none.
  """

  restore: Callable[[Observation], jax.Array]
  samples: int


def study(
  settings: RestorationSettings, tick: progress.Tick = progress.silent
) -> tuple[list[Restored], dict[str, Pictures]]:
  """Restores every photograph from every degradation.

  Args:
    settings: what to do.
    tick: called before the compilation, and before each operator.

  Returns:
    A row for every operator, method and photograph, and the pictures of every
    operator.
  """
  prior = degradations.build_prior(settings.size)
  problems = degradations.build_problems(
    settings.photographs, settings.size, settings.noise_std, settings.seed
  )
  methods = _methods(settings, prior)
  tick("restoration: compiling")
  programs = _compiled(methods, problems, settings.workers)
  rows: list[Restored] = []
  pictures: dict[str, Pictures] = {}
  for problem in problems:
    tick(f"restoration: {problem.name}")
    answers = {DEGRADED: degradations.as_image(problem.observation)}
    seconds = {DEGRADED: 0.0}
    for name, method in methods.items():
      batch = _batch(problem.observation, method)
      start = time.monotonic()
      run = programs[name, problem.name]
      answers[name] = jax.block_until_ready(run(batch))
      seconds[name] = time.monotonic() - start
    pictures[problem.name] = _pictures(problem, answers, settings.num_samples)
    for name, images in answers.items():
      samples = 0 if name == DEGRADED else methods[name].samples
      rows += _rows(settings, problem, name, images, samples, seconds[name])
  return rows, pictures


def _methods(
  settings: RestorationSettings, prior: priors.GaussianPrior
) -> dict[str, Method]:
  calibrated = NFCConfig.calibrated(
    levels=settings.levels, inner={"tolerance": settings.tolerance}
  )
  paper = NFCConfig.paper(
    levels=settings.paper_levels, inner={"steps": settings.paper_inner_steps}
  )
  keys = jax.random.split(jax.random.key(settings.seed))

  def drawn(
    config: NFCConfig, key: jax.Array
  ) -> Callable[[Observation], jax.Array]:
    sampler = posterior_jax.nfc(config, spectrum=prior.spectrum)
    return lambda o: posterior_jax.run(sampler, prior.denoise, o, key)[0][0]

  return {
    WIENER: Method(lambda o: priors.posterior_mean(prior, o)[0], 0),
    CALIBRATED: Method(drawn(calibrated, keys[0]), settings.num_samples),
    PAPER: Method(drawn(paper, keys[1]), 1),
  }


def _batch(observation: Observation, method: Method) -> Observation:
  """The first photograph again for every sample: one batch holds them all."""
  again = max(method.samples, 1) - 1
  order = np.array([0] * again + list(range(len(observation.y))))
  return dataclasses.replace(observation, y=observation.y[order])


def _compiled(
  methods: Mapping[str, Method], problems: list[Problem], workers: int
) -> dict[tuple[str, str], Callable[[Observation], jax.Array]]:
  """A program for every method and operator, by their names."""

  def compile_one(pair: tuple[str, Problem]) -> tuple[tuple, Callable]:
    name, problem = pair
    batch = _batch(problem.observation, methods[name])
    program = jax.jit(methods[name].restore).lower(batch).compile()
    return (name, problem.name), program

  pairs = itertools.product(methods, problems)
  return dict(threads.in_threads(compile_one, pairs, workers))


def _rows(
  settings: RestorationSettings,
  problem: Problem,
  method: str,
  images: jax.Array,
  samples: int,
  seconds: float,
) -> list[Restored]:
  """A row for every photograph; the first may have several samples."""
  several = images[:samples]
  x = images[max(samples, 1) - 1 :]  # one answer a photograph
  numbers = zip(
    metrics.psnr(x, problem.truth),
    metrics.ssim(x, problem.truth),
    metrics.measurement_residual(x, problem.observation),
  )
  rows = []
  for photograph, found in zip(settings.photographs, numbers):
    psnr, ssim, residual = map(float, found)
    drawn = min(samples, 1)
    means = (None, None)
    about = (problem.name, photograph, method, drawn)
    rows.append(Restored(*about, psnr, ssim, residual, *means, seconds))
  if samples > 1:
    mean, truth = jnp.mean(several, axis=0), problem.truth[0]
    rows[0] = rows[0]._replace(
      samples=samples,
      psnr_mean=float(metrics.psnr(mean, truth)),
      ssim_mean=float(metrics.ssim(mean, truth)),
    )
  return rows


def _pictures(
  problem: Problem, answers: Mapping[str, jax.Array], samples: int
) -> Pictures:
  """What the report shows of the first photograph, by column."""
  several = answers[CALIBRATED][:samples]
  variance = jnp.var(several, axis=0, ddof=1)  # [H, W, 3]
  shown = {
    "photograph": problem.truth[0],
    "measured": answers[DEGRADED][0],
    "exact posterior mean": answers[WIENER][0],
    "one sample": several[0],
    "mean of samples": jnp.mean(several, axis=0),
    "spread of samples": jnp.sqrt(jnp.mean(variance, axis=-1)),
    "paper's, shrunk": answers[PAPER][0],
  }
  return {name: np.asarray(image) for name, image in shown.items()}
