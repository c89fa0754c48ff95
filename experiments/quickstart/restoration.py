"""One photograph degraded five ways and restored under a learned prior.

`NFCConfig.fast()` beside baselines, tuned elsewhere, that call the network as
often, and samples of `NFCConfig.calibrated()` for what the measurement leaves
open.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import posterior_jax
from experiments.data import degradations, photographs
from experiments.data.degradations import Problem
from experiments.harness import prior_files, progress
from experiments.harness.processes import threads
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects import samplers
from experiments.harness.subjects.samplers import TUNED, Drawn
from experiments.peers.dpir import dpir
from posterior_jax import NFCConfig, Observation, metrics
from posterior_jax.base import Denoiser
from posterior_jax.nfc_sampler import Spectrum

DEGRADED = "measured"
FAST = "NFC fast()"
SAMPLE = "NFC calibrated(), a sample"
MEAN = "NFC calibrated(), mean of samples"
DPIR = "DPIR"
# Of `experiments.few_calls`: the best for motion blur and super-resolution.
DPIR_WEIGHT = 0.2
# The best on this photograph at 10 calls, each as tuned elsewhere, of DPIR,
# DiffPIR, DDRM, DDNM+, RED-diff, PnP-DM, DAPS and SITCOM.
BEST_BASELINES = (DPIR, "DiffPIR", "DiffPIR", DPIR, DPIR)

# Each program runs once. At this level LLVM takes a quarter less time over it
# (3.7 s for 5.1 on 2 CPU cores), and the network's convolutions are library
# calls, as fast.
_QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}

Restore = Callable[[Denoiser, Observation], Drawn]


@dataclasses.dataclass(frozen=True)
class RestorationSettings(Checked):
  """What is restored and how long it may take."""

  seed: int = 0  # of the noise and of the samplers
  # a file of `prior_files.load`, "" for the small photo prior, or "gaussian"
  # for one with the spectrum of other photographs
  prior: str = prior_files.SHIPPED
  # which, none of those that priors learn from
  photograph: str = setting("astronaut", among=photographs.FILES)
  size: int = setting(128, at_least=64, at_most=256, multiple_of=8)  # its side
  # of the measurement, pixels in [-1, 1]
  noise_std: float = setting(0.05, above=0)
  # of the network for one restored picture
  calls: int = setting(10, at_least=2)
  # one for each of `degradations.OPERATORS`, DPIR or a tuned one of
  # `samplers.METHODS`
  baselines: tuple[str, ...] = setting(
    BEST_BASELINES, among=(DPIR, *samplers.METHODS)
  )
  num_samples: int = setting(3, at_least=2)  # calibrated samples
  levels: int = setting(10, at_least=1)  # of theirs, a call each
  # programs compiled at a time, each on about one core
  workers: int = setting(2, at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.photograph in photographs.PRIOR:
      raise ValueError(
        "photograph must not be among the prior's own, "
        f"{', '.join(photographs.PRIOR)}; got {self.photograph}"
      )
    if len(self.baselines) != len(degradations.OPERATORS):
      raise ValueError(
        f"baselines must name one for each of {len(degradations.OPERATORS)} "
        f"operators, got {len(self.baselines)}"
      )


class Restored(NamedTuple):
  """One answer to one measurement."""

  operator: str  # how the photograph was degraded
  photograph: str  # which
  method: str  # DEGRADED for the measurement itself, or whose answer it is
  calls: int  # of the network, for this answer
  products: int  # with the network's Jacobian (VJPs), likewise
  psnr: float  # in dB
  ssim: float  # likewise good where large
  residual: float  # |y - A x|^2 / (m noise_std^2); near 1 for the truth
  # standard deviation of a pixel over the samples, root mean square; None for
  # what is no sample
  spread: float | None
  seconds: float  # of the run, compiled; of all samples together


class Answers(NamedTuple):
  """What came of one measurement."""

  photograph: np.ndarray  # the truth, [H, W, 3] in [-1, 1]
  images: Mapping[str, np.ndarray]  # by method, likewise
  spread: np.ndarray  # standard deviation of a pixel over the samples, [H, W]


def read_prior(settings: RestorationSettings) -> Denoiser:
  """What the settings' prior answers.

  Raises:
    ValueError: its file cannot be read.
  """
  if settings.prior == prior_files.GAUSSIAN:
    return degradations.build_prior(settings.size).denoise
  return prior_files.load(settings.prior).denoise


def study(
  settings: RestorationSettings,
  denoise: Denoiser,
  tick: progress.Tick = progress.silent,
) -> tuple[list[Restored], dict[str, Answers]]:
  """Restores the photograph from every degradation.

  Args:
    settings: what to do.
    denoise: from `read_prior`.
    tick: called before the compilation, and before each operator.

  Returns:
    A row for every operator and answer, and the answers of every operator.
  """
  problems = degradations.build_problems(
    (settings.photograph,), settings.size, settings.noise_std, settings.seed
  )
  known = degradations.build_prior(settings.size)
  methods = _methods(settings, known.spectrum)
  tick("restoration: compiling")
  pairs = [(name, p) for p in problems for name in _names(settings, p)]
  programs = _compiled(methods, pairs, denoise, settings.workers)
  rows: list[Restored] = []
  answers: dict[str, Answers] = {}
  for problem in problems:
    tick(f"restoration: {problem.name}")
    drawn, seconds = {}, {}
    for method in _names(settings, problem):
      start = time.monotonic()
      run = programs[method, problem.name]
      found = run(denoise, problem.observation)
      drawn[method] = jax.block_until_ready(found)
      seconds[method] = time.monotonic() - start
    answers[problem.name] = _answers(problem, drawn)
    rows += _rows(settings, problem, answers[problem.name], drawn, seconds)
  return rows, answers


def fast(settings: RestorationSettings) -> NFCConfig:
  """The preset, which turns pictures for the prior that ships alone."""
  turned = {"turned": prior_files.any_way_up(settings.prior)}
  return NFCConfig.fast(levels=settings.calls, predictor=turned)


def _methods(
  settings: RestorationSettings, spectrum: jax.Array
) -> dict[str, Restore]:
  """By name, the samples under SAMPLE."""
  key = jax.random.key(settings.seed)

  def drawn(sampler: posterior_jax.Sampler, num_samples: int = 1) -> Restore:
    draw = samplers.draw(sampler, num_samples)
    return lambda denoise, observation: draw(denoise, observation, key)

  def plug_and_play(denoise: Denoiser, observation: Observation) -> Drawn:
    x = dpir(denoise, observation, weight=DPIR_WEIGHT, calls=settings.calls)
    return Drawn(x[None], jnp.array(settings.calls), jnp.array(0))

  def baseline(name: str) -> Restore:
    if name == DPIR:
      return plug_and_play
    config = samplers.config(name, TUNED, evaluations=settings.calls)
    return drawn(samplers.build(name, config, spectrum=spectrum))

  # Few levels: noise starts where pictures begin to show, and the width by the
  # spectrum alone saves a VJP per level.
  calibrated = NFCConfig.calibrated(
    levels=settings.levels,
    width=Spectrum(inflation=1.5),
    schedule={"sigma_max": 5.0},
  )
  return {
    FAST: drawn(posterior_jax.nfc(fast(settings), spectrum=spectrum)),
    **{name: baseline(name) for name in dict.fromkeys(settings.baselines)},
    SAMPLE: drawn(
      posterior_jax.nfc(calibrated, spectrum=spectrum), settings.num_samples
    ),
  }


def _names(settings: RestorationSettings, problem: Problem) -> tuple[str, ...]:
  """The methods that restore from one operator."""
  baselines = dict(zip(degradations.OPERATORS, settings.baselines))
  return FAST, baselines[problem.name], SAMPLE


def _compiled(
  methods: Mapping[str, Restore],
  pairs: Iterable[tuple[str, Problem]],
  denoise: Denoiser,
  workers: int,
) -> dict[tuple[str, str], Restore]:
  """A program for every method and operator, by their names."""

  def compile_one(pair: tuple[str, Problem]) -> tuple[tuple, Restore]:
    name, problem = pair
    # A network's weights as constants would be compiled into every program.
    lowered = jax.jit(methods[name]).lower(denoise, problem.observation)
    options = _QUICK if jax.default_backend() == "cpu" else None
    return (name, problem.name), lowered.compile(options)

  return dict(threads.in_threads(compile_one, pairs, workers))


def _answers(problem: Problem, drawn: Mapping[str, Drawn]) -> Answers:
  samples = np.asarray(drawn[SAMPLE].samples)[:, 0]  # [m, H, W, 3]
  measured = degradations.as_image(problem.observation)[0]
  images = {DEGRADED: np.asarray(measured)}
  images |= {name: np.asarray(x.samples[0, 0]) for name, x in drawn.items()}
  images[MEAN] = samples.mean(axis=0)
  spread = np.sqrt(samples.var(axis=0, ddof=1).mean(axis=-1))
  return Answers(np.asarray(problem.truth[0]), images, spread)


def _rows(
  settings: RestorationSettings,
  problem: Problem,
  answers: Answers,
  drawn: Mapping[str, Drawn],
  seconds: Mapping[str, float],
) -> list[Restored]:
  """A row for every answer; the mean of samples takes all their calls."""
  images = jnp.stack(list(answers.images.values()))[:, None]  # [K, 1, H, W, 3]
  found = _likeness(images, problem.truth)
  found["residual"] = _residual(images, problem.observation)
  rows = []
  for i, method in enumerate(answers.images):
    source = SAMPLE if method == MEAN else method
    count = settings.num_samples if method == MEAN else 1
    run = drawn.get(source)
    spread = float(np.sqrt(np.mean(answers.spread**2)))
    rows.append(
      Restored(
        problem.name,
        settings.photograph,
        method,
        calls=0 if run is None else count * int(run.calls),
        products=0 if run is None else count * int(run.products),
        **{name: float(values[i, 0]) for name, values in found.items()},
        spread=spread if method == SAMPLE else None,
        seconds=seconds.get(source, 0.0),
      )
    )
  return rows


# Apart: one program for all operators, and a small one for each.
@jax.jit
def _likeness(images: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
  """Of images [K, 1, H, W, 3], [K, 1] each."""
  return {
    "psnr": metrics.psnr(images, truth),
    "ssim": metrics.ssim(images, truth),
  }


_residual = jax.jit(metrics.measurement_residual)
