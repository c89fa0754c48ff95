"""The sums that a release of jaxlib computes wrong on CPUs."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neumann_jax import faulty_sums


@jax.jit
def _back_and_forth(p, x):
  return p * (p * x).sum(-1, keepdims=True)


def test_sums_of_products_are_right_in_this_process():
  """jax-ml/jax#39103: off by 1.5 of its size in jaxlib 0.10.2 by itself."""
  x = np.random.default_rng(0).standard_normal((64, 32, 32, 3), np.float32)
  p = x[0]
  expected = p * (p * x).sum(-1, keepdims=True)
  found = _back_and_forth(jnp.asarray(p), jnp.asarray(x))
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("release", faulty_sums.FAULTY)
@pytest.mark.parametrize("flags", ["", "--xla_cpu_enable_fast_math=false"])
def test_a_faulty_release_gets_the_flag(monkeypatch, release, flags):
  monkeypatch.setattr(jax.lib, "__version__", release)
  monkeypatch.setattr(faulty_sums, "_has_devices", lambda: False)
  monkeypatch.setenv("XLA_FLAGS", flags)
  faulty_sums.avoid()
  assert os.environ["XLA_FLAGS"].split() == [*flags.split(), faulty_sums.FLAG]


@pytest.mark.parametrize("release", ["0.10.1", "0.11.1", "0.12.0"])
def test_a_sound_release_is_left_alone(monkeypatch, release):
  monkeypatch.setattr(jax.lib, "__version__", release)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  faulty_sums.avoid()
  assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize(
  ("value", "warned"),
  [
    ("dot", False),
    ("-LIBRARY_FUSION_TYPE_REDUCE", False),
    ("-reduce,+dot", False),
    ("", False),
    ("+dot", True),
    ("dot,eltwise", True),
  ],
)
def test_the_callers_own_choice_stays(monkeypatch, value, warned):
  """Which leave sums wrong was seen under jaxlib 0.10.2."""
  monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
  own = f"--xla_cpu_experimental_ynn_fusion_type={value}"
  monkeypatch.setenv("XLA_FLAGS", own)
  with warnings.catch_warnings(record=True) as caught:
    faulty_sums.avoid()
  assert [x.category for x in caught] == [RuntimeWarning] * warned
  assert os.environ["XLA_FLAGS"] == own


def test_a_file_of_flags_is_not_written_to(monkeypatch):
  monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
  monkeypatch.setenv("XLA_FLAGS", "flags.txt")
  with pytest.warns(RuntimeWarning, match="flags.txt is taken for the name of"):
    faulty_sums.avoid()
  assert os.environ["XLA_FLAGS"] == "flags.txt"


def test_a_flag_that_comes_too_late_is_a_warning(monkeypatch):
  jax.devices()
  monkeypatch.setattr(jax.lib, "__version__", "0.10.2")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  before = jax.config.values["jax_num_cpu_devices"]
  with pytest.warns(RuntimeWarning, match="devices before this import"):
    faulty_sums.avoid()
  assert jax.config.values["jax_num_cpu_devices"] == before
  assert "XLA_FLAGS" not in os.environ
