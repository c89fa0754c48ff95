"""The hypotheses on photographs, under a learned prior.

What `closed_form` says of a Gaussian prior, and what has no closed form:
wavelets. Every case stands beside its control, the same run without what it is
about; runs of both see the same noise.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.continuation import chain, doubt
from experiments.continuation.settings import (
  FEW,
  NOISY,
  WAVELETS,
  WRONG,
  Settings,
)
from experiments.data import degradations
from experiments.data.degradations import Degradation
from experiments.harness.speed.compiled import Compiled
from posterior_jax import NFCConfig, Observation, metrics, run
from posterior_jax.base import Denoiser
from posterior_jax.likelihood import bands
from posterior_jax.nfc_sampler import (
  Band,
  Mean,
  Sigma,
  Snr,
  Spectrum,
  compose,
  levels_of,
  parts_of,
)
from posterior_jax.operators import motion_blur

ROUND = Degradation("gaussian_blur")
MEDIUM, LONG = (Degradation("motion_blur", k) for k in ("medium", "long"))
SHARE = Band(Snr(), power=1, blend_start=1.0, blend_end=1.0)
# How the uncertainty of a kernel is kept out: not at all; by a band about the
# kernel that is told, or about the mean of its turns; by the errors that the
# turns would make of the prediction.
NONE, BAND, MEAN, ERRORS = DOUBTS = (
  "no band",
  "band",
  "mean kernel, band",
  "mean kernel, errors",
)


class Case(NamedTuple):
  """One setting on one degradation.

  Attributes:
    hypothesis: what it is about.
    variant: of it.
    degradation: what is restored.
    config: of `nfc`.
    noise_std: of the measurement.
    turn: of the kernel that the sampler is told, in degrees.
    doubt: how the kernel's uncertainty is kept out, of DOUBTS.
  """

  hypothesis: str
  variant: str
  degradation: Degradation
  config: NFCConfig
  noise_std: float
  turn: float = 0.0
  doubt: str = NONE


def cases(settings: Settings) -> Iterator[Case]:
  """Everything that is run; the first variant of a hypothesis is its control.

  Kernels are those whose numbers the documentation has, and wavelets and the
  wrong kernel have levels of their own: 40 and 50.

  Args:
    settings: whose levels, noise, tau_shares and turn hold here too.
  """
  noise_std = settings.noise_std
  plain = NFCConfig(width=Sigma(), inner=Mean())
  widths = {
    "no band": plain,
    "S / (S + sigma^2)": plain.replace(band=SHARE),
    "width of the spectrum": plain.replace(width=Spectrum()),
  }
  for levels in settings.levels:
    for variant, config in widths.items():
      for degradation in (ROUND, MEDIUM):
        made = config.replace(levels=levels)
        yield Case(FEW, f"{variant}, {levels}", degradation, made, noise_std)
  best = NFCConfig.restoration(levels=50)
  for degradation in (MEDIUM, LONG):
    for turn, words in ((settings.turn, "turned"), (0.0, "right")):
      for way in DOUBTS:
        variant = f"{words}, {way}"
        yield Case(WRONG, variant, degradation, best, noise_std, turn, way)
  strong = settings.strong_noise_std
  for share in settings.tau_shares:
    for variant, config in widths.items():
      for levels in settings.levels:
        made = config.replace(levels=levels, inner_noise_std=share * strong)
        words = f"tau {share:g} of the noise, {variant}, {levels}"
        yield Case(NOISY, words, MEDIUM, made, strong)
  paper = NFCConfig.paper(levels=40)
  fusions: dict[str, Mapping[str, Any]] = {
    "Haar": {},
    "Haar, 2 levels": {"levels": 2},
    "Haar, 3 levels": {"levels": 3},
    "db2": {"wavelet": "db2"},
    "bior4.4": {"wavelet": "bior4.4"},
    "the authors' draft": {"high": (1.0, 0.26, 0.2)},
    "unlocked from the base": {"unlock": "base"},
    "unlocked with delay": {"unlock": "delay"},
  }
  yield Case(WAVELETS, "none", MEDIUM, paper.replace(fusion=None), noise_std)
  for variant, change in fusions.items():
    made = paper.replace(fusion=dict(change))
    yield Case(WAVELETS, variant, MEDIUM, made, noise_std)


class Told(NamedTuple):
  """What the sampler gets.

  Attributes:
    observation: with the kernel that it is told.
    others: kernels that may be the right one instead, [T, k, k], or None where
      the sampler is not to know.
  """

  observation: Observation
  others: jax.Array | None = None


def told(case: Case, observation: Observation, spectrum: jax.Array) -> Told:
  """The observation as the sampler gets it."""
  if not case.degradation.kernel:
    return Told(observation)
  operator = observation.operator
  kernel = np.asarray(operator.kernel, np.float64)  # type: ignore[attr-defined]
  if case.turn:
    kernel = chain.turned(kernel, case.turn)
  others = chain.turns(kernel)
  mean = case.doubt in (MEAN, ERRORS)
  centre = np.mean(others, axis=0) if mean else kernel
  if mean or case.turn:
    operator = motion_blur(operator.image_shape, centre)
  assumed = Observation(observation.y, operator, observation.noise_std)
  if case.doubt == ERRORS:
    return Told(assumed, jnp.asarray(np.stack(others), jnp.float32))
  if case.doubt == NONE:
    return Told(assumed)
  power = np.asarray(spectrum, np.float64)
  band = chain.uncertainty_band(power, kernel, case.noise_std, centre)
  return Told(bands.apply_band(assumed, jnp.asarray(band, jnp.float32)))


def by_program(wanted: Iterable[Case]) -> list[list[Case]]:
  """Cases that differ in their numbers alone, together."""
  groups: dict[Any, list[Case]] = {}
  for case in wanted:
    # The two bands are one program.
    way = BAND if case.doubt == MEAN else case.doubt
    key = case.config, bool(case.degradation.kernel), way
    groups.setdefault(key, []).append(case)
  return [*groups.values()]


class Pictures(NamedTuple):
  """Photographs, and what restores them."""

  names: list[str]
  truth: np.ndarray  # [N, H, W, 3]
  denoise: Denoiser
  spectrum: jax.Array  # [H, W]


def restored(
  group: list[Case], given: Pictures, seed: int, turn: threading.Lock
) -> list[dict[str, Any]]:
  """Rows of a group of `by_program`, one for every case and picture.

  Args:
    group: of cases.
    given: what is restored.
    seed: of noise and sampler.
    turn: held while the device works.
  """
  program = Compiled(_restore(group[0].config), turn)
  rows = []
  for case in group:
    problem = degradations.measure(
      case.degradation, jnp.asarray(given.truth), case.noise_std, seed
    )
    seen = told(case, problem.observation, given.spectrum)
    x = program(given.denoise, seen, jax.random.key(seed), given.spectrum)
    for name, psnr in zip(given.names, metrics.psnr(x, problem.truth)):
      rows.append(
        {
          "hypothesis": case.hypothesis,
          "kernel": str(case.degradation),
          "variant": case.variant,
          "picture": name,
          "psnr": float(psnr),
        }
      )
  return rows


def _restore(config: NFCConfig) -> Any:
  def restore(
    denoise: Denoiser, seen: Told, key: jax.Array, spectrum: jax.Array
  ) -> jax.Array:
    parts = parts_of(config, spectrum)
    if seen.others is not None:
      parts = doubt.careful(parts, seen.others)
    sampler = compose(parts, levels_of(config))
    return run(sampler, denoise, seen.observation, key)[0][0]

  return restore
