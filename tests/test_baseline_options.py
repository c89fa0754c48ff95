"""No option of a baseline is ignored: each changes the program of a run.

As `test_options` of the sampler's own settings; what an option should do is the
matter of the tests of each baseline.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import Observation, baselines, operators, priors

SIZE = 8
PRIOR = priors.gaussian_prior(priors.power_law_spectrum(SIZE, SIZE))
# Mirrored and not separable: solves iterate, so that their limits show.
BLUR = operators.blur((SIZE, SIZE, 1), np.eye(3) / 3)
# What has singular values, for the methods that need them.
ROUND = operators.gaussian_blur((SIZE, SIZE, 1), size=3, std=1.0)


class Case(NamedTuple):
  """A baseline, settings under which all options matter, other values."""

  build: Any
  config: Any
  others: dict[str, Any]
  operator: Any = BLUR


SOLVE = {"tolerance": 1e-3, "max_iterations": 7}
CASES = {
  "adamdps": Case(
    baselines.adamdps,
    baselines.AdamDPSConfig(levels=4),
    {
      "levels": 5,
      "scale": 0.1,
      "first_decay": 0.5,
      "second_decay": 0.5,
      "clip": False,
    },
  ),
  "daps": Case(
    baselines.daps,
    baselines.DAPSConfig(levels=4),
    {
      "levels": 5,
      "sigma_max": 50.0,
      "sigma_min": 0.2,
      "rho": 5.0,
      "predictor_steps": 3,
      "predictor_sigma_min": 0.05,
      "inner": "exact",
      "inner_steps": 9,
      "step_size": 2e-4,
      "step_size_decay": 0.5,
      "noise_std": 0.2,
    },
  ),
  "daps, exact": Case(
    baselines.daps, baselines.DAPSConfig(levels=4, inner="exact"), SOLVE
  ),
  "ddnm": Case(
    baselines.ddnm,
    baselines.DDNMConfig(levels=4),
    {"levels": 5, "eta": 0.5, "threshold": 0.1, **SOLVE},
  ),
  "ddrm": Case(
    baselines.ddrm,
    baselines.DDRMConfig(levels=4),
    {"levels": 5, "eta": 0.5, "eta_data": 0.5, "threshold": 0.5},
    ROUND,
  ),
  "diffpir": Case(
    baselines.diffpir,
    baselines.DiffPIRConfig(levels=4),
    {
      "levels": 5,
      "spacing": "uniform",
      "weight": 0.5,
      "renewal": 0.6,
      "clip": False,
      **SOLVE,
    },
  ),
  "dps": Case(
    baselines.dps,
    baselines.DPSConfig(levels=4),
    {"levels": 5, "scale": 1.0, "clip": False},
  ),
  "fastdips": Case(
    baselines.fastdips,
    baselines.FASTDIPSConfig(levels=4),
    {
      "levels": 5,
      "sigma_max": 50.0,
      "sigma_min": 0.2,
      "rho": 5.0,
      "iterations": 4,
      "steps": 2,
      "radius": 1.0,
      "penalty": 2.0,
    },
  ),
  "fgps": Case(
    baselines.fgps,
    baselines.FGPSConfig(levels=4),
    {
      "levels": 5,
      "scale_start": 2.0,
      "scale_end": 0.2,
      "cutoff_start": 0.2,
      "cutoff_end": 0.9,
      "cutoff_law": "linear",
      "clip": False,
    },
  ),
  "mmps": Case(
    baselines.mmps,
    baselines.MMPSConfig(levels=4),
    {"levels": 5, "eta": 0.5, "iterations": 2, "tolerance": 1e-2},
  ),
  "pigdm": Case(
    baselines.pigdm,
    baselines.PiGDMConfig(levels=4),
    {"levels": 5, "eta": 0.5, "data_std": 1.0, "weight": "score", **SOLVE},
  ),
  "pnpdm": Case(
    baselines.pnpdm,
    # So that the width reaches the one that stays.
    baselines.PnPDMConfig(levels=4, decay=0.1),
    {
      "levels": 5,
      "coupling_max": 5.0,
      "coupling_min": 0.2,
      "decay": 0.5,
      "nodes": 50,
      "solver": "ancestral",
      "exact_start": True,
      **SOLVE,
    },
  ),
  "reddiff": Case(
    baselines.reddiff,
    baselines.REDDiffConfig(levels=4),
    {"levels": 5, "weight": 0.5, "learning_rate": 0.2},
  ),
  "sitcom": Case(
    baselines.sitcom,
    baselines.SITCOMConfig(levels=4),
    {
      "levels": 5,
      "steps": 7,
      "rate": 0.05,
      "anchor": 0.1,
      "stop": 1.5,
      "clip": False,
    },
  ),
}


def _program(case, config):
  """Everything that a run of the settings does, as text."""
  y = jnp.zeros((1, *case.operator.measurement_shape))
  observation = Observation(y, case.operator, 0.1)
  sampler = case.build(config)
  key = jax.random.key(0)

  def both(key):
    state = sampler.init(key, observation, 1)
    return state, sampler.step(state, PRIOR.denoise, observation, key)

  made = jax.make_jaxpr(both)(key)
  return str(made), [np.asarray(const).tolist() for const in made.consts]


@pytest.mark.parametrize("name", CASES)
def test_no_option_is_ignored(name):
  case = CASES[name]
  before = _program(case, case.config)
  for option, value in case.others.items():
    changed = dataclasses.replace(case.config, **{option: value})
    assert _program(case, changed) != before, option


def test_every_option_is_tried():
  tried: dict[type, set[str]] = {}
  for case in CASES.values():
    tried.setdefault(type(case.config), set()).update(case.others)
  for kind, names in tried.items():
    assert {field.name for field in dataclasses.fields(kind)} == names, kind
  made = {
    getattr(baselines, name)
    for name in dir(baselines)
    if name.endswith("Config")
  }
  assert made == {*tried}
