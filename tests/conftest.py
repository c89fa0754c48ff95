"""One numerical policy for every test: no silent promotion, full precision."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="module")
def quick_compilation():
  """Programs of a file that asks for it compile without optimisation.

  That takes half the time and changes the order of sums and nothing else: for
  tests that run many programs once, whole studies above all.
  """
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file():
  """Compiled programs of one file are of no use to the next: memory."""
  yield
  jax.clear_caches()
