"""The benchmark's frozen draws: as they were, regenerated, each another."""

import hashlib
import importlib.resources
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import freeze_assets
from experiments.data import degradations
from experiments.data.degradations import FROZEN, MOTION_BLURS
from experiments.restore.picture_files import kernel_file
from posterior_jax import operators
from posterior_jax.operators import frozen

ASSETS = importlib.resources.files("posterior_jax") / "assets"
# Of the bytes: numbers that were reported belong to these draws.
REPORTED = {
  "motion_short": "0e6826dc1f9814b5c9e7ab39ea5f1f58",
  "motion_medium": "02e30c3dac6b709ecc5f0e5f2ab1cf56",
  "motion_long": "69629735fd95fd408e17aa7b54a26d41",
  "random_mask": "fbacb0bdc8816d233c5d60fd01cfdc1a",
  "box_corner": "62edf1b55afdb3f5bf74857d10e5db43",
}


def _manifest():
  return json.loads((ASSETS / "frozen.json").read_text())


def _arrays(data):
  with np.load(data, allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("name", REPORTED)
def test_what_was_reported_stays(name):
  data = frozen._arrays()[name].tobytes()
  assert hashlib.sha256(data).hexdigest()[:32] == REPORTED[name]
  assert frozen.PATHS == ("short", "medium", "long")


def test_frozen_file_is_verified():
  manifest = _manifest()
  data = bytearray((ASSETS / manifest["file"]).read_bytes())
  assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
  frozen.verify(bytes(data), manifest["sha256"], "frozen.npz")
  data[100] ^= 1
  with pytest.raises(ValueError, match=r"frozen\.npz is not the frozen file"):
    frozen.verify(bytes(data), manifest["sha256"], "frozen.npz")


def test_frozen_draws_regenerate_bit_for_bit(tmp_path, monkeypatch):
  monkeypatch.setattr(freeze_assets, "FOLDER", tmp_path)
  freeze_assets.main([])
  drawn = _arrays(tmp_path / "frozen.npz")
  stored = _arrays(ASSETS / "frozen.npz")
  assert drawn.keys() == stored.keys()
  for name, array in stored.items():
    assert drawn[name].dtype == array.dtype
    np.testing.assert_array_equal(drawn[name], array)
  written = json.loads((tmp_path / "frozen.json").read_text())
  # The compressed bytes are zlib's, of any release.
  assert written | {"sha256": ""} == _manifest() | {"sha256": ""}


def test_ten_kernels_by_path_length():
  lengths = _manifest()["path_length_pixels"]
  assert tuple(lengths) == frozen.ALL_PATHS == tuple(freeze_assets.PERCENTILES)
  assert len(frozen.ALL_PATHS) == 10 and {*frozen.PATHS} < {*lengths}
  assert sorted(lengths.values()) == [*lengths.values()]
  kernels = [frozen.motion_kernel(name) for name in frozen.ALL_PATHS]
  for kernel in kernels:
    assert kernel.shape == (61, 61) and kernel.dtype == np.float32
    assert kernel.min() >= 0
    np.testing.assert_allclose(kernel.sum(dtype=np.float64), 1, atol=1e-6)
  # Draws of their own: no two share more than two thirds of their weight.
  for one, other in itertools.combinations(kernels, 2):
    assert np.minimum(one, other).sum() < 2 / 3


def test_names_say_the_percentile():
  known = dict(zip(frozen.PATHS, (10, 50, 90)))
  for name, percentile in freeze_assets.PERCENTILES.items():
    assert percentile == known.get(name) or name == f"p{percentile}"


def test_the_mask_drops_70_percent():
  assert int((frozen.random_mask() == 0).sum()) == int(0.7 * 256 * 256)


@pytest.mark.parametrize("name", frozen.ALL_PATHS)
def test_every_name_is_known_to_operators_and_to_restore(name):
  kernel = frozen.motion_kernel(name)
  operator = operators.motion_blur((64, 64, 1), name)
  np.testing.assert_array_equal(operator.kernel, kernel)
  np.testing.assert_allclose(kernel_file.read(name), kernel, rtol=1e-6)


def test_unknown_names_are_refused():
  words = (
    "kernel must be one of short, p20, p30, p40, medium, p60, p70, p80, long, "
    "p95 or an array; got 'p50'"
  )
  with pytest.raises(ValueError, match=words):
    operators.motion_blur((64, 64, 1), "p50")


def test_measurements_of_all_ten():
  """The noise of what was reported stays, and each has its own."""
  assert [kind.kernel for kind in MOTION_BLURS] == [*frozen.ALL_PATHS]
  assert {kind.task for kind in MOTION_BLURS} == {"motion_blur"}
  kinds = (*FROZEN[4:], *(kind for kind in MOTION_BLURS if kind not in FROZEN))
  assert [kind.kernel for kind in kinds[:3]] == [*frozen.PATHS]
  truth = jnp.zeros((1, 64, 64, 1))
  for number, kind in enumerate(kinds, start=4):
    key = jax.random.fold_in(jax.random.key(3), number)
    noise = 0.1 * jax.random.normal(key, truth.shape)
    found = degradations.measure(kind, truth, 0.1, 3).observation.y
    np.testing.assert_allclose(found, noise, atol=1e-6)


def test_what_was_verified_cannot_be_written_to():
  """It is cached: a change would be everybody's."""
  for array in (frozen.motion_kernel("p20"), frozen.random_mask()):
    with pytest.raises(ValueError, match="read-only"):
      array[:] = 0
