"""No option of the sampler is ignored: each changes the program of a run.

What a setting does is in the levels that it makes and in the program of `init`
and `step`; an option that nothing reads leaves both as they are. What it should
do is the matter of `test_transition` and `test_chain`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import NFCConfig, Observation, nfc, operators, priors
from posterior_jax.nfc_sampler import (
  Band,
  Denoise,
  Exact,
  Exponential,
  Fusion,
  Gradient,
  Jacobian,
  Langevin,
  Mean,
  Ode,
  Power,
  Probed,
  Radial,
  Schedule,
  Sigma,
  Snr,
  Spectrum,
  levels_of,
)
from tests.oracles import refused

SIZE = 8
POWER = priors.power_law_spectrum(SIZE, SIZE)
PLAIN = NFCConfig(levels=4)
HELD = PLAIN.replace(schedule={"held": 0.5})
BANDED = PLAIN.replace(width=Sigma(), band=Band())
FILLED = PLAIN.replace(
  width=Sigma(), inner=Mean(), schedule={"noise": "filled"}
)
FUSED = PLAIN.replace(fusion=Fusion())
# By record: what has one, and a value of each field that is not its own.
OPTIONS = {
  NFCConfig: (
    PLAIN,
    {
      "levels": 5,
      "schedule": Schedule(rho=5.0),
      "predictor": Ode(),
      "width": Sigma(),
      "inner": Mean(),
      "band": Band(),
      "fusion": Fusion(),
      "inner_noise_std": 0.2,
      "halved_misfit": False,
      "linearisations": 2,
    },
  ),
  Schedule: (
    # Which noise can be filled in.
    HELD.replace(
      width=Sigma(), inner=Mean(), schedule={"averaged": "predicted"}
    ),
    {
      "sigma_max": 50.0,
      "sigma_min": 0.2,
      "rho": 5.0,
      "held": 0.75,
      "averaged": "refined",
      "passes": 2,
      "start": "measurement",
      "noise": "filled",
      "renewal": 0.5,
      "momentum": 0.5,
      "relaxation": 1.5,
    },
  ),
  Denoise: (PLAIN, {"discrepancy": 0.5, "turned": True}),
  Ode: (
    PLAIN.replace(predictor=Ode()),
    {"solver": "heun", "steps": 4, "sigma_end": 0.02},
  ),
  Sigma: (PLAIN.replace(width=Sigma()), {"factor": 2.0, "most": 1.0}),
  Spectrum: (PLAIN, {"factor": 2.0, "inflation": 1.5}),
  Probed: (
    PLAIN.replace(width=Probed()),
    {"factor": 2.0, "inflation": 1.5},
  ),
  Jacobian: (
    # Which takes a guess.
    PLAIN.replace(width=Jacobian(), inner=Mean()),
    {"factor": 2.0, "guess": Sigma()},
  ),
  Exact: (
    PLAIN.replace(width=Jacobian()),
    {"tolerance": 1e-3, "max_iterations": 7, "root_steps": 3},
  ),
  Mean: (
    PLAIN.replace(inner=Mean()),
    {"tolerance": 1e-3, "max_iterations": 7},
  ),
  Langevin: (
    PLAIN.replace(inner=Langevin()),
    {"steps": 7, "step_size": 2e-4, "decay": 0.5},
  ),
  Gradient: (PLAIN.replace(inner=Gradient()), {"steps": 7}),
  Band: (
    BANDED,
    {
      "mask": Snr(),
      "power": 1,
      "blend": "additive",
      "blend_start": 0.5,
      "blend_end": 0.1,
      "law": Power(),
    },
  ),
  Radial: (
    BANDED,
    {
      "law": "log_sigma",
      "cutoff_start": 0.5,
      "cutoff_end": 0.9,
      "shape": "gaussian",
    },
  ),
  Snr: (BANDED, {}),
  Exponential: (
    BANDED.replace(band={"mask": Radial(Exponential())}),
    {"rate": 3.0},
  ),
  Power: (BANDED.replace(band={"law": Power()}), {"exponent": 2.0}),
  Fusion: (
    FUSED,
    {
      "wavelet": "db2",
      "levels": 2,
      "low": 0.5,
      "high": 0.3,
      "unlock": "clip",
      "unlock_start": 0.1,
      "unlock_end": 0.9,
    },
  ),
}


# By what is wrong: what would have been written, and what it says.
IDLE = {
  "predictions of no level": (
    lambda: PLAIN.replace(schedule={"averaged": "predicted"}),
    "averaged must be refined where held is 0, which averages nothing, got p",
  ),
  "predictions, with no level held after all": (
    lambda: NFCConfig.fast(schedule={"held": 0.0}),
    "averaged must be refined where held is 0, which averages nothing, got p",
  ),
  "passes": (
    lambda: HELD.replace(levels=1, schedule={"passes": 2}),
    "passes must be 1 unless levels are held, got 2 with held 0.5 of 1 levels",
  ),
  "linearisations of updates": (
    lambda: NFCConfig.paper(linearisations=5),
    "inner must be Exact or Mean with linearisations, got Langevin",
  ),
  "linearisations of a descent": (
    lambda: PLAIN.replace(linearisations=3, inner=Gradient()),
    "inner must be Exact or Mean with linearisations, got Gradient",
  ),
  "a delay that ends before it starts": (
    lambda: Fusion(unlock="delay", unlock_start=0.9, unlock_end=0.1),
    'unlock_end must be at least unlock_start with unlock "delay", got 0.1 '
    "with unlock_start 0.9",
  ),
  "noise filled in under a width of Fourier space": (
    lambda: FILLED.replace(width=Spectrum()),
    "width must be Sigma with noise filled, got Spectrum",
  ),
  "noise filled in beside a draw": (
    lambda: FILLED.replace(inner=Exact()),
    "inner must be Mean with noise filled, got Exact",
  ),
  "noise filled in under a width that brings in more": (
    lambda: FILLED.replace(width=Sigma(2.5)),
    "factor must be at most 2 with noise filled, where the measurement would "
    "bring in more noise than the level has, got 2.5",
  ),
  "noise filled in behind a band": (
    lambda: FILLED.replace(band=Band()),
    "band must be None with noise filled, got Band",
  ),
  "noise filled in and fused": (
    lambda: FILLED.replace(fusion=Fusion()),
    "fusion must be None with noise filled, got Fusion",
  ),
  "noise filled in, with another noise of the likelihood": (
    lambda: FILLED.replace(inner_noise_std=0.2),
    "inner_noise_std must be None with noise filled, got 0.2",
  ),
  "noise filled in under a misfit that is not halved": (
    lambda: FILLED.replace(halved_misfit=False),
    "halved_misfit must be True with noise filled, got False",
  ),
  "noise filled in, of which the denoiser takes out less": (
    lambda: FILLED.replace(predictor=Denoise(discrepancy=0.5)),
    "discrepancy must be 0.0 with noise filled, got 0.5",
  ),
  "noise filled in and linearised anew": (
    lambda: FILLED.replace(linearisations=2),
    "linearisations must be 1 or None with noise filled, got 2",
  ),
  "noise filled in and averaged": (
    lambda: FILLED.replace(schedule={"held": 0.5}),
    "averaged must be predicted with noise filled, since refined images have",
  ),
  "an ODE that ends above all levels": (
    lambda: NFCConfig(predictor=Ode(sigma_end=100.0)),
    "sigma_end must lie below the noise of the first level, 100.0, got 100.0",
  ),
  "an ODE that ends above the level that is held": (
    lambda: NFCConfig.fast(
      levels=1, predictor=Ode(sigma_end=0.05), schedule={"momentum": 0.0}
    ),
    "sigma_end must lie below the noise of the first level, 0.0493, got 0.05",
  ),
  "a first level below the last": (
    lambda: NFCConfig.calibrated(
      width=Jacobian(), schedule={"sigma_max": 0.05}
    ),
    "sigma_max must lie above 0.1, where the levels of this width end, got 0.0",
  ),
}


@pytest.mark.parametrize("case", IDLE)
def test_what_would_be_idle_is_refused(case):
  made, sentence = IDLE[case]
  with refused(ValueError, sentence):
    made()


@pytest.mark.parametrize(
  "width, last",
  [
    (Sigma(), 0.1),
    (Spectrum(inflation=1.5), 0.02),
    (Probed(), 0.02),
    (Jacobian(), 0.1),
  ],
)
def test_what_follows_the_width_follows_it_however_it_was_set(width, last):
  at_once = NFCConfig.calibrated(width=width, levels=4)
  assert at_once.sigma_min == last
  for before in (Jacobian(), Probed(inflation=1.5)):
    later = NFCConfig.calibrated(width=before).replace(levels=4)
    assert later.replace(width=width) == at_once
  made = levels_of(at_once.replace(schedule={"held": 0.3}))
  assert float(made.sigma[-1]) == np.float32(last)
  own = at_once.replace(schedule={"sigma_min": 0.05})
  assert own.sigma_min == own.replace(width=Sigma()).sigma_min == 0.05


def where(config, record):
  """Path to the record in a config's fields, () for the config itself."""
  if type(config) is record:
    return ()
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      path = where(value, record)
      if path is not None:
        return (field.name, *path)
  return None


def program(config, *, linear=True):
  """Everything that a run of the settings does, as text."""
  # Mirrored and not separable: solves iterate, so that their limits show.
  operator = operators.blur((SIZE, SIZE, 1), np.eye(3) / 3)
  if not linear:
    operator = operators.nonlinear(jnp.sin, (SIZE, SIZE, 1))
  observation = Observation(jnp.zeros((1, SIZE, SIZE, 1)), operator, 0.1)
  prior = priors.gaussian_prior(POWER)
  sampler = nfc(config, spectrum=POWER)
  key = jax.random.key(0)

  def both(key):
    state = sampler.init(key, observation, 1)
    return state, sampler.step(state, prior.denoise, observation, key)

  made = jax.make_jaxpr(both)(key)
  return str(made), [np.asarray(const).tolist() for const in made.consts]


@pytest.mark.parametrize("record", OPTIONS)
def test_no_option_is_ignored(record):
  config, others = OPTIONS[record]
  path = where(config, record)
  if path is None:  # nothing to set
    assert not others
    return
  before = program(config)
  for name, value in others.items():
    change = {name: value}
    for part in reversed(path):
      change = {part: change}
    after = config.replace(**change)
    if name == "linearisations":  # of what is not linear alone
      known = program(config, linear=False)
      assert program(after, linear=False) != known
      continue
    assert program(after) != before, name


def test_every_option_is_tried():
  for record, (_, others) in OPTIONS.items():
    assert {field.name for field in dataclasses.fields(record)} == {*others}
