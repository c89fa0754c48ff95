"""The sampler broken in ways that must not pass: `python -m tests.mutants`.

Each mutant replaces one function of the package and names the fast test that
fails under it; `test_mutants.py` (slow) runs them all.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from posterior_jax.likelihood import bands
from posterior_jax.nfc_sampler import from_config, fusion, levels
from tests import test_transition


class Mutant(NamedTuple):
  """A function of a module, what takes its place, and the case that sees it."""

  module: Any
  name: str
  broken: Callable
  case: str  # of test_transition.test_one_transition


_weight, _fuse, _blend = bands.weight, fusion.fuse, levels.cosine_blend
_radial, _progress = bands.radial_band, levels.schedule.progress


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
    lambda m, mix, form: _weight(m**2, mix, form),
    "butterworth",
  ),
  "band not squared": Mutant(
    bands, "weight", lambda m, mix, form: _weight(m**0.5, mix, form), "snr"
  ),
  "blend constant": Mutant(
    levels, "cosine_blend", lambda start, p: np.full_like(p, start), "gaussian"
  ),
  "blend form ignored": Mutant(
    bands,
    "weight",
    lambda m, mix, form: _weight(m, mix, "convex"),
    "butterworth",
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
  "renoise by the wrong level": Mutant(from_config, "renoise", _renoise, "snr"),
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
