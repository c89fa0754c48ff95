"""CONTRIBUTING's worked examples, applied to a copy of the tree and run."""

import configparser
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def _section(title):
  return re.search(rf"^## {title}.*?(?=^## |\Z)", TEXT, re.S | re.M)[0]


def _applied(title, tree):
  """The files that a section of CONTRIBUTING adds to or changes in a tree."""
  section = _section(title)
  touched = []
  for patch in re.findall(r"^```diff\n(.*?)^```", section, re.S | re.M):
    touched += re.findall(r"^\+\+\+ b/(.*)$", patch, re.M)
    subprocess.run(
      ["git", "apply", "-"], cwd=tree, input=patch, text=True, check=True
    )
  files = r'^```python title="(.*?)"\n(.*?)^```'
  for name, source in re.findall(files, section, re.S | re.M):
    (tree / name).write_text(source)
    touched.append(name)
  return touched


@pytest.fixture
def tree(tmp_path):
  """The code without weights, which nothing here reads."""
  weights = shutil.ignore_patterns("__pycache__", "*.safetensors")
  for name in ("neumann_jax", "posterior_jax", "experiments", "configs"):
    shutil.copytree(ROOT / name, tmp_path / name, ignore=weights)
  (tmp_path / "tests").mkdir()
  shutil.copy(ROOT / "pyproject.toml", tmp_path)
  return tmp_path


def _python(tree, *arguments):
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=tree,
    env=os.environ
    | {
      "PYTHONPATH": str(tree),
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # nearly all of it compiles
    },
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  return done.stdout


def _is_clean(tree, touched):
  for command in (["check"], ["format", "--check"]):
    _python(tree, "-m", "ruff", *command, *touched)


def test_a_method_in_three_files(tree):
  touched = _applied("A new inverse method, in three files", tree)
  assert len(set(touched)) == 3
  printed = _python(tree, "-m", "pytest", "-n", "0", "-rA", touched[-1])
  assert printed.count("PASSED") == 2
  _is_clean(tree, touched)


_OPTION = """
import jax
import jax.numpy as jnp
from flax import nnx

import neumann_jax as nj

config = nj.ModelConfig(
  vocab_size=8, hidden_size=8, num_hidden_layers=1, intermediate_size=8,
  layer_types=("linear_attention",),
  linear_num_key_heads=1, linear_num_value_heads=1,
  linear_key_head_dim=8, linear_value_head_dim=8,
)
def execution(**options):
  return nj.Execution(rule=nj.RuleOptions(chunk_size=16, **options))


again = nj.LanguageModel(config, execution(), rngs=nnx.Rngs(0))
kept = again.with_execution(recompute=False)
assert kept.execution == execution(recompute=False)
try:
  execution(fused=True, recompute=False)
except ValueError as refused:
  assert "recompute" in str(refused)
else:
  raise AssertionError("a fused rule ignores recompute=False")
tokens = jnp.arange(16)[None] % 8


def gradient(model):
  graph, state = nnx.split(model)
  loss = lambda state: nnx.merge(graph, state)(tokens)[0].sum()
  traced = jax.jit(jax.grad(loss)).trace(state)
  compiled = traced.lower().compile()
  return compiled(state), str(traced.jaxpr).count("remat")


(one, some), (other, none) = gradient(again), gradient(kept)
assert none < some, (none, some)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
  assert jnp.abs(a - b).max() <= 1e-5 * (1 + jnp.abs(a).max())
"""


@pytest.mark.slow
def test_an_option_in_two_files(tree):
  touched = _applied("A new option of the rule, in two files", tree)
  assert len(set(touched)) == 2
  _python(tree, "-c", _OPTION)
  _is_clean(tree, touched)


def test_an_experiment_in_two_files(tree):
  touched = _applied("A new experiment, in two files", tree)
  assert len(set(touched)) == 2
  (name,) = {pathlib.Path(path).stem for path in touched}
  form = f"--config=configs/{name}.py:debug"
  _python(tree, "-m", f"experiments.{name}", form, f"--workdir={tree}/run")
  lines = (tree / f"run/{name}.jsonl").read_text().splitlines()
  largest = {row["cosine"]: row["largest"] for row in map(json.loads, lines)}
  assert largest[1.0] == max(math.comb(6, n) for n in range(7))
  assert largest[0.5] == max(math.comb(6, n) * 0.5 ** (n + 1) for n in range(7))
  assert (tree / f"run/{name}.csv").exists()
  _is_clean(tree, touched)


def test_the_layers_drawn_are_those_checked():
  checked = configparser.ConfigParser()
  checked.read(ROOT / ".importlinter")
  drawn = _section("Layers")
  for name in checked.sections():
    section = checked[name]
    if section.get("type") == "layers":
      lines = section["layers"].strip().splitlines()
      block = "\n".join([section["containers"].strip(), *lines])
      plain = re.sub(r"\|\n +", "| ", drawn)  # a layer of several lines
      plain = re.sub(r"(?m)^ +", "", plain)
      assert block in plain, name


def test_ci_checks_the_layers():
  assert ".venv/bin/lint-imports" in (ROOT / ".ci/run").read_text()
