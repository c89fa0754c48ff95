"""The notebooks: every cell runs in FAST mode, and what they promise."""

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def _cells(path, kind):
  cells = json.loads(path.read_text())["cells"]
  return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def _plain(source):
  """Python of a cell: `%pip` left out, `%timeit x` run once."""
  lines = []
  for line in source.splitlines():
    if line.startswith("%timeit "):
      lines.append(line.removeprefix("%timeit "))
    elif not line.startswith("%pip "):
      lines.append(line)
  return "\n".join(lines)


def test_both_notebooks_are_here():
  assert [p.stem for p in NOTEBOOKS] == ["neumann_tpu", "posterior_tpu"]


@every
def test_every_cell_runs_in_fast_mode(path, tmp_path):
  script = tmp_path / "cells.py"
  script.write_text("\n".join(map(_plain, _cells(path, "code"))) + "\n")
  done = subprocess.run(
    [sys.executable, str(script)],
    cwd=path.parent,
    env=os.environ | {"FAST": "1", "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "['cpu: cpu'" in done.stdout  # the devices
  assert "'jax': '" in done.stdout
  words = {"neumann_tpu": "state, step", "posterior_tpu": "VarianceRatio"}
  assert words[path.stem] in done.stdout


@every
def test_install_is_pinned_inside_the_supported_range(path):
  setup = (ROOT / "setup.py").read_text()
  low, high = re.search(r'"jax>=([\d.]+),<([\d.]+)"', setup).groups()
  install = next(c for c in _cells(path, "code") if "%pip install" in c)
  pinned = re.search(r"jax\[tpu\]==([\d.]+)", install)[1]

  def number(version):
    return tuple(map(int, version.split(".")))

  assert number(low) <= number(pinned) < number(high)
  assert "$SOURCE[plots]" in install and '"plots": PLOTS' in setup


@every
def test_notebooks_hold_no_logic_of_their_own(path):
  text = "\n".join(map(_plain, _cells(path, "code")))
  for node in ast.walk(ast.parse(text)):
    kinds = ast.FunctionDef | ast.ClassDef | ast.For | ast.While | ast.Try
    assert not isinstance(node, kinds), ast.unparse(node)
  assert 'FAST = os.environ.get("FAST", "0") == "1"' in text


@every
def test_badge_and_what_was_not_measured(path):
  text = "\n".join(_cells(path, "markdown"))
  assert "colab.research.google.com/assets/colab-badge.svg" in text
  assert "No number in this project was measured on a TPU" in text
  assert json.loads(path.read_text())["metadata"]["accelerator"] == "TPU"
