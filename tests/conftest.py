"""One numerical policy for every test: no silent promotion, full precision.

Most of a fast test's time would be XLA's, for programs that run once on a few
numbers. The fast tests therefore compile without optimisation, which changes
the order of sums and nothing else. `FULL_COMPILATION=1 python -m pytest`, once
a night, shows that they hold for the programs that users run. Slow tests always
run those, but for the ones that ask for `quick_compilation`.

Outside of `jax.jit` every operation on a new shape is a program too, of 20 ms:
tests draw, cast (`np.float32(x)` before `jnp.asarray`) and compare by numpy.
"""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Before NumPy is loaded. The processes of xdist have the cores already: threads
# of linear algebra wait for one another in loops, up to 100 times as long as
# one thread takes for the matrices of the tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's

import jax
import pytest

FULL = os.environ.get("FULL_COMPILATION", "0") == "1"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


def _quick(config):
  return "not slow" in config.option.markexpr and not FULL


def pytest_configure(config):
  """Before jax looks for devices; every process of xdist comes here."""
  gc.disable()  # until the tests are collected, see there
  flags = "--xla_force_host_platform_device_count=8"
  if _quick(config):
    # In one module: tests share the cores already, and splitting one costs.
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    if jax.__version_info__ < (0, 11):
      # Loops by LLVM alone: emitting them through MLIR takes twice the time.
      # Later jaxlibs end at a flag that they no longer know.
      flags += " --xla_cpu_use_fusion_emitters=false"
  os.environ.setdefault("XLA_FLAGS", flags)


def pytest_collection_finish():
  """Rarer garbage collections, of less: they took 7 % of the fast tests.

  Tracing makes objects by the million, few of them in cycles. What was imported
  by now stays: looking through it while it grew took a quarter of the time of
  collecting the tests.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)
  gc.enable()


@pytest.fixture(scope="module")
def quick_compilation():
  """Asked for by slow tests that compile for longer than they compute."""


@pytest.fixture
def full_compilation():
  """Asked for by fast tests that compute for longer than they compile.

  XLA optimises their programs, but on jax 0.10 still without its fusion
  emitters: the flags of `pytest_configure` are those of the whole process. The
  programs that users run are compiled under `FULL_COMPILATION=1` and for slow
  tests alone.
  """


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Before any fixture: a module's fixtures compile as its first test does."""
  asked = item.fixturenames
  quick = _quick(item.config) or ("quick_compilation" in asked and not FULL)
  quick = quick and "full_compilation" not in asked
  jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
  """Memory: two processes would come to 6 GB, and save no time by it."""
  yield
  jax.clear_caches()
