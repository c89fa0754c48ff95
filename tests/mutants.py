"""The sampler broken in ways that must not pass: `python -m tests.mutants`.

Each mutant replaces one function of the package and names the fast test that
fails under it; `test_mutants.py` (slow) runs them all.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.denoising import predictor
from posterior_jax.likelihood import bands
from posterior_jax.nfc_sampler import (
  Power,
  Sigma,
  first_state,
  from_config,
  fusion,
  levels,
  states,
)
from tests import test_few_calls, test_momentum, test_transition, test_turned


class Mutant(NamedTuple):
  """A function of a module, what takes its place, and the case that sees it."""

  module: Any
  name: str
  broken: Callable
  # of test_transition.test_one_transition, or another test
  case: str | Callable[[], None]


_weight, _fuse = bands.weight, fusion.fuse
_radial, _progress = bands.radial_band, levels.schedule.progress
_blends, _saturating = levels._blends, levels.schedule.saturating
_tied, _hold, _predict = levels._tied, from_config._hold, predictor.predict


def _renoise(key, image, level):
  noise = jax.random.normal(key, image.shape, image.dtype)
  return image + level.sigma * noise


MUTANTS = {
  "band off": Mutant(
    bands, "apply_band", lambda observation, weight: observation, "paper"
  ),
  "band squared": Mutant(
    bands,
    "weight",
    lambda m, mix, form, power: _weight(m, mix, form, 2 * power),
    "butterworth",
  ),
  "band not squared": Mutant(
    bands, "weight", lambda m, mix, form, power: _weight(m, mix, form, 1), "snr"
  ),
  "band always squared": Mutant(
    bands,
    "weight",
    lambda m, mix, form, power: _weight(m, mix, form, 2),
    "share of the spectrum",
  ),
  "blend constant": Mutant(
    levels, "cosine_blend", lambda start, p: np.full_like(p, start), "gaussian"
  ),
  "blend form ignored": Mutant(
    bands,
    "weight",
    lambda m, mix, form, power: _weight(m, mix, "convex", power),
    "butterworth",
  ),
  "blend ends in 0": Mutant(
    levels,
    "_blends",
    lambda band, p: _blends(dataclasses.replace(band, blend_end=0.0), p),
    "within the band only",
  ),
  "blend by a cosine": Mutant(
    levels,
    "_blends",
    lambda band, p: _blends(dataclasses.replace(band, law="cosine"), p),
    "authors' draft",
  ),
  "power of the blend ignored": Mutant(
    levels,
    "_blends",
    lambda band, p: _blends(dataclasses.replace(band, law=Power(1.0)), p),
    "authors' draft",
  ),
  "cutoff's rate ignored": Mutant(
    levels.schedule,
    "saturating",
    lambda p, rate: _saturating(p, 5.0),
    "authors' draft",
  ),
  "exponential cutoff linear": Mutant(
    levels.schedule, "saturating", lambda p, rate: p, "authors' draft"
  ),
  "sub-bands in another order": Mutant(
    fusion,
    "fuse",
    lambda *a, **k: _fuse(*a, **k | {"high": k["high"][::-1]}),
    "authors' draft",
  ),
  "one weight for all sub-bands": Mutant(
    fusion,
    "fuse",
    lambda *a, **k: _fuse(*a, **k | {"high": jnp.mean(k["high"])}),
    "share of the spectrum",
  ),
  "shape of the band ignored": Mutant(
    bands, "radial_band", lambda s, c, kind: _radial(s, c, "hard"), "gaussian"
  ),
  "cutoff by step": Mutant(
    levels.schedule,
    "progress",
    lambda sigmas, law: _progress(sigmas, "step"),
    "butterworth",
  ),
  "detail weight constant": Mutant(
    fusion,
    "unlocked",
    lambda law, high, start, end, p: np.full_like(p, high),
    "paper",
  ),
  "low weight ignored": Mutant(
    fusion, "fuse", lambda *a, **k: _fuse(*a, **k | {"low": 1.0}), "gaussian"
  ),
  "levels ignored": Mutant(
    fusion, "fuse", lambda *a, **k: _fuse(*a, **k | {"levels": 1}), "snr"
  ),
  "wavelet ignored": Mutant(
    fusion,
    "fuse",
    lambda *a, **k: _fuse(*a, **k | {"wavelet": "haar"}),
    "butterworth",
  ),
  "order of fusion swapped": Mutant(
    fusion, "fuse", lambda x0, z, **k: _fuse(z, x0, **k), "paper"
  ),
  "renoise by the wrong level": Mutant(states, "renoise", _renoise, "snr"),
  "noise renewed as a whole": Mutant(
    states,
    "renoising",
    lambda renewal: states.renoise,
    test_momentum.test_a_run_by_hand,
  ),
  "start without its noise": Mutant(
    first_state,
    "noise",
    lambda key, observation, shape, level: jnp.zeros(shape),
    test_few_calls.test_a_start_adds_its_share_of_the_noise,
  ),
  "tied by the root of the share": Mutant(
    levels,
    "_tied",
    lambda nodes, how: _tied(
      nodes, dataclasses.replace(how, renewal=how.renewal**0.5)
    ),
    test_few_calls.test_a_width_is_of_what_the_next_level_leaves,
  ),
  "discrepancy ignored": Mutant(
    states,
    "heeded",
    lambda sigma, misfit, discrepancy: sigma,
    functools.partial(
      test_few_calls.test_fast_is_one_call_a_level_and_the_last_prediction, 4
    ),
  ),
  "momentum ignored": Mutant(
    states,
    "leading",
    lambda x0, before, level: x0,
    test_momentum.test_a_run_by_hand,
  ),
  "not turned": Mutant(
    predictor,
    "turned",
    lambda denoise, way: denoise,
    lambda: test_turned.test_every_level_turns_another_way(Sigma()),
  ),
  "refined images averaged": Mutant(
    from_config,
    "_hold",
    lambda averaged: _hold("refined"),
    test_momentum.test_what_is_averaged_is_the_prediction_itself,
  ),
  "exponent of the ODE ignored": Mutant(
    predictor,
    "predict",
    lambda *a, **k: _predict(*a, **k | {"rho": 7.0}),
    test_few_calls.test_an_ode_steps_by_the_schedules_exponent,
  ),
}


def killed(name: str) -> bool:
  """Whether the named test fails under the mutant."""
  mutant = MUTANTS[name]
  # A program of the whole sampler is known by its settings, which stay.
  jax.clear_caches()
  try:
    with mock.patch.object(mutant.module, mutant.name, mutant.broken):
      if isinstance(mutant.case, str):
        test_transition.test_one_transition(mutant.case)
      else:
        mutant.case()
  except AssertionError:
    return True
  finally:
    jax.clear_caches()
  return False


if __name__ == "__main__":
  found = {name: killed(name) for name in MUTANTS}
  for name, dead in found.items():
    print(f"{name:28} {'killed' if dead else 'SURVIVES'}")
  sys.exit(not all(found.values()))
