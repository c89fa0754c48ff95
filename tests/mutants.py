"""The sampler broken in ways that must not pass: `python -m tests.mutants`.

Each mutant replaces one function of the package and names the fast test that
fails under it; `test_mutants.py` (slow) runs them all.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from posterior_jax.likelihood import bands
from posterior_jax.nfc_sampler import Power, fusion, levels, states
from tests import test_transition


class Mutant(NamedTuple):
  """A function of a module, what takes its place, and the case that sees it."""

  module: Any
  name: str
  broken: Callable
  case: str  # of test_transition.test_one_transition


_weight, _fuse = bands.weight, fusion.fuse
_radial, _progress = bands.radial_band, levels.schedule.progress
_blends, _saturating = levels._blends, levels.schedule.saturating


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
}


def killed(name: str) -> bool:
  """Whether the named test fails under the mutant."""
  mutant = MUTANTS[name]
  with mock.patch.object(mutant.module, mutant.name, mutant.broken):
    try:
      test_transition.test_one_transition(mutant.case)
    except AssertionError:
      return True
  return False


if __name__ == "__main__":
  found = {name: killed(name) for name in MUTANTS}
  for name, dead in found.items():
    print(f"{name:28} {'killed' if dead else 'SURVIVES'}")
  sys.exit(not all(found.values()))
