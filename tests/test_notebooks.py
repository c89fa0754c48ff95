"""The notebooks: every cell runs in FAST mode, and what they promise."""

import ast
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = ("neumann_tpu", "posterior_tpu")
SCANS = ("chunks", "tokens")
every = pytest.mark.parametrize("name", NOTEBOOKS)


def _path(name):
  return ROOT / "notebooks" / f"{name}.ipynb"


def _cells(name, kind):
  cells = json.loads(_path(name).read_text())["cells"]
  return ["".join(c["source"]) for c in cells if c["cell_type"] == kind]


def _plain(source):
  """Python of a cell: `%pip` left out, `%timeit x` run once, reports shown."""
  lines = [
    line.removeprefix("%timeit ")
    for line in source.splitlines()
    if not line.startswith("%pip ")
  ]
  if lines and lines[-1].isidentifier():  # what a notebook would display
    lines[-1] = f"print({lines[-1]}._repr_html_())"
  return "\n".join(lines)


def _code(name):
  return "\n".join(map(_plain, _cells(name, "code"))) + "\n"


def _printed(name):
  """What all cells print in FAST mode, in an interpreter of their own."""
  changes = {
    "FAST": "1",
    "JAX_PLATFORMS": "cpu",
    "MPLBACKEND": "agg",
    # Nearly all of the time is compilation.
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }
  done = subprocess.run(
    [sys.executable, "-c", _code(name)],
    cwd=ROOT / "notebooks",
    env=os.environ | changes,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "devices: ['cpu: cpu']" in done.stdout
  assert "'jax': '" in done.stdout
  assert "Measured on cpu: cpu" in done.stdout  # on every report
  return done.stdout


def _number(label, text):
  """The number printed right after `label:`."""
  return float(re.search(re.escape(label) + r": ([\d.e+-]+)", text)[1])


def test_every_notebook_is_tested():
  found = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
  assert found == set(NOTEBOOKS)


@pytest.mark.slow
def test_neumann_runs_and_finds_what_it_says():
  printed = _printed("neumann_tpu")
  assert '<table id="worst">' in printed
  assert "exceeded their bound: 0." in printed
  for label in ("output", "state"):
    assert _number(f"{label}, step against chunks", printed) < 1e-5
  _rule_was_timed(printed)


def _rule_was_timed(printed):
  """Three forms by what ran; on a CPU no kernels, and nothing predicted."""
  header, *rows = printed[printed.rindex("median ms") :].splitlines()
  assert header.split() == ["median", "ms", "lowest", "ms"]
  scans = (f"jax's scan over {x}" for x in SCANS)
  forms = "implementation 'auto', in XLA here", *scans
  for row, form in zip(rows[:3], forms, strict=True):
    assert row.strip().startswith(form)
    median, lowest = map(float, row.split(form)[1].split())
    assert 0 < lowest <= median
  assert "nothing is predicted: no TPU among v5e, v5p, v6e, 7x" in rows[3]


@pytest.mark.slow
def test_posterior_runs_and_finds_what_it_says():
  printed = _printed("posterior_tpu")
  for table in ("restoration", "answers", "bands"):
    assert f'<table id="{table}">' in printed
  assert "data:image/jpeg;base64," in printed  # the panel
  right = _number("variance ratio, calibrated", printed)
  scatter = float(re.search(r"calibrated: \S+ \+- (\S+)", printed)[1])
  assert 0 < scatter < 0.02
  assert abs(right - 1) < 5 * scatter
  wrong = _number("variance ratio, published centre and width", printed)
  assert abs(wrong - 1) > 20 * scatter
  # Of 64 exact samples the mean error is 1/8 with a few per cent of scatter.
  error = _number("mean error in posterior standard deviations", printed)
  assert abs(error / 0.125 - 1) < 0.25
  assert _number("time per sample", printed) > 0


def _part(module, name):
  """A submodule or an attribute."""
  try:
    return importlib.import_module(f"{module}.{name}")
  except ModuleNotFoundError:
    return getattr(importlib.import_module(module), name)


@every
def test_names_of_the_packages_exist(name):
  """What a cell takes from a module is there; running it is a slow test."""
  tree = ast.parse(_code(name))
  modules = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for x in node.names:
        importlib.import_module(x.name)
        called = x.asname or x.name.partition(".")[0]
        modules[called] = sys.modules[x.name if x.asname else called]
    elif isinstance(node, ast.ImportFrom):
      for x in node.names:
        modules[x.asname or x.name] = _part(node.module, x.name)
  looked_at = 0
  for node in ast.walk(tree):
    first, *path = ast.unparse(node).split(".")
    if isinstance(node, ast.Attribute) and first in modules:
      value = modules[first]
      for part in path:
        value = getattr(value, part)
      looked_at += 1
  assert looked_at > 10


@every
def test_install_is_pinned_inside_the_supported_range(name):
  setup = (ROOT / "setup.py").read_text()
  low, high = re.search(r'"jax>=([\d.]+),<([\d.]+)"', setup).groups()
  (install,) = re.findall(r"^%pip install (.*)$", _install(name), re.M)
  pinned = re.search(r'"jax\[tpu\]==([\d.]+)"', install)[1]

  def number(version):
    return tuple(map(int, version.split(".")))

  assert number(low) <= number(pinned) < number(high)
  package = re.search(r'"(\.\.)\[(\w+)\]"$', install)  # the package itself
  assert (ROOT / "notebooks" / package[1] / "setup.py").exists()
  assert f'"{package[2]}":' in setup
  named = re.search(r'"([\w-]+)\[', _install(name))[1]
  assert f'name="{named}"' in setup


def _install(name):
  """The first code cell: nothing may be imported before the installation."""
  return _cells(name, "code")[0]


@every
def test_notebooks_hold_no_logic_of_their_own(name):
  kinds = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.For,
    ast.While,
    ast.Try,
    ast.If,
  )
  for node in ast.walk(ast.parse(_code(name))):
    assert not isinstance(node, kinds), ast.unparse(node)
  assert 'FAST = os.environ.get("FAST", "0") == "1"' in _code(name)


@every
def test_badge_and_what_was_not_measured(name):
  text = "\n".join(_cells(name, "markdown"))
  badge = "https://colab.research.google.com/assets/colab-badge.svg"
  target = "https://colab.research.google.com/github/"
  assert f"[![Open in Colab]({badge})]({target})" in text
  assert "No number in this project was measured on a TPU" in text


@every
def test_stored_form(name):
  """Valid nbformat 4.5 with ids and for a TPU; stripped: test_repo."""
  notebook = json.loads(_path(name).read_text())
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)  # nbformat would repair them
  nbformat.validate(notebook)
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert notebook["metadata"]["accelerator"] == "TPU"
