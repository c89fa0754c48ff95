"""What tests share that run experiments under `every_write.c`."""

import pathlib
import shutil
import subprocess

import jax
import pytest


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
  """The counting layer below libc."""
  compiler = shutil.which("cc")
  if compiler is None:
    pytest.skip("needs a C compiler")
  made = tmp_path_factory.mktemp("layer") / "every_write.so"
  source = pathlib.Path(__file__).with_name("every_write.c")
  subprocess.run(
    [compiler, "-shared", "-fPIC", "-O1", source, "-o", made, "-ldl"],
    check=True,
  )
  return made


@pytest.fixture(scope="module")
def programs(quick_compilation, tmp_path_factory):
  """Compiled programs on disk, for all processes: of the same bits."""
  del quick_compilation
  folder = str(tmp_path_factory.mktemp("programs"))
  settings = {
    "jax_compilation_cache_dir": folder,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield {name.upper(): str(value) for name, value in settings.items()}
  for name, value in before.items():
    jax.config.update(name, value)
