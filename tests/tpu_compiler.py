"""Compiling for a TPU that is not there, in a process of its own."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

KINDS = {
  "v5e": "v5e:2x2",
  "v6e": "v6e:2x2",
  "v5p": "v5p:2x2x1",
  "7x": "tpu7x:2x2x1",
}
ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(module, kind, names, function="compile_all"):
  """What `module.function(topology, names)` prints: case to complaint.

  libtpu reads its settings from the environment when it is loaded, which a
  process can do once.
  """
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs the compiler of the extra `tpu`, libtpu")
  code = f"import {module} as t; t.{function}({KINDS[kind]!r}, {list(names)!r})"
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other tests compile beside this one
  }
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])
