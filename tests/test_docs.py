"""The documentation: its examples run, and what it names is there."""

import ast
import importlib
import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import pytest
import yaml

import posterior_jax as pj
from tests import test_repo

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def _name(path):
  return str(path.relative_to(ROOT))


def _examples(path):
  return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.S | re.M)


# A model, a mesh, a network and samplers take most of a minute together.
_LONG = (
  *("port_a_model", "fine_tune", "many_devices", "many_hosts"),
  *("restore_a_photograph", "operators", "bring_your_own"),
  "choose_an_inverse",
)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  "path",
  [
    pytest.param(
      path,
      id=_name(path),
      marks=[pytest.mark.slow] if path.stem in _LONG else [],
    )
    for path in filter(_examples, PAGES)
  ],
)
def test_examples_run(path):
  """The blocks of a page are one program; they assert what they claim."""
  # optax promotes: its counts of steps are integers.
  promotion = "standard" if "optax" in path.read_text() else "strict"
  with jax.numpy_dtype_promotion(promotion):
    _execute(path)


def _execute(path, change=lambda tree: tree):
  program: dict = {}
  for number, block in enumerate(_examples(path)):
    name = f"{path.name}, example {number}"
    exec(compile(change(ast.parse(block, name)), name, "exec"), program)


class _WithoutInequalities(ast.NodeTransformer):
  """Leaves out what is asserted of samples, which are zeros here."""

  def visit_Assert(self, node):
    bounds = any(isinstance(x, ast.Lt | ast.Gt) for x in ast.walk(node))
    return ast.copy_location(ast.Pass(), node) if bounds else node


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize(
  ("page", "linear"),
  [
    pytest.param("operators", [True, False, False], marks=pytest.mark.slow),
    ("bring_your_own", [True] * 3),
  ],
)
def test_examples_reach_their_samplers(monkeypatch, page, linear):
  """All of a page; samplers are traced, and what they find is slow."""
  run, traced = pj.run, []

  def trace(sampler, denoise, observation, key, **options):
    traced.append(observation.operator)
    shapes = jax.eval_shape(
      lambda key: run(sampler, denoise, observation, key, **options), key
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  monkeypatch.setattr(pj, "run", trace)
  _execute(ROOT / f"docs/guides/{page}.md", _WithoutInequalities().visit)
  assert [operator.is_linear for operator in traced] == linear


@pytest.mark.parametrize("path", [*filter(_examples, PAGES)], ids=_name)
def test_examples_take_what_is_there(path):
  """Every block is Python, and what it imports exists."""
  for node in ast.walk(ast.parse("\n".join(_examples(path)))):
    if isinstance(node, ast.Import):
      for name in node.names:
        importlib.import_module(name.name)
    elif isinstance(node, ast.ImportFrom):
      for name in node.names:
        assert _resolves(f"{node.module}.{name.name}"), ast.unparse(node)


def test_every_guide_has_an_example():
  for path in (ROOT / "docs/guides").glob("*.md"):
    assert _examples(path), path.name


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_name_real_things(path):
  test_repo.check_commands(test_repo.commands(path.read_text()))


def _spans(path):
  """What stands in backticks on a page, code blocks left out."""
  text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
  return re.findall(r"`([^`]+)`", text)


ROOMS = "neumann_jax|posterior_jax|experiments|configs|tests|notebooks|docs"


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_paths_exist(path):
  """`neumann_jax/...` and the like are files or folders of the repository."""
  for span in _spans(path):
    for found in re.findall(rf"\b((?:{ROOMS})/[\w/.-]*)", span):
      assert (ROOT / found).exists(), found


def _resolves(dotted):
  parts = dotted.split(".")
  for cut in range(len(parts), 0, -1):
    try:
      found = importlib.import_module(".".join(parts[:cut]))
    except ModuleNotFoundError:
      continue
    for part in parts[cut:]:
      if not hasattr(found, part):
        return False
      found = getattr(found, part)
    return True
  return False


@pytest.mark.parametrize("path", WRITTEN, ids=_name)
def test_names_resolve(path):
  """Dotted names in backticks, and the targets of `:::`, are importable."""
  names = re.findall(r"^::: ([\w.]+)$", path.read_text(), re.M)
  for span in _spans(path):
    names += re.findall(rf"\b((?:{ROOMS}|nj|pj)\.[a-zA-Z_][\w.]*)", span)
  for name in names:
    full = re.sub(r"^nj\.", "neumann_jax.", name)
    assert _resolves(re.sub(r"^pj\.", "posterior_jax.", full)), name


def test_api_pages_hold_every_public_name():
  text = "".join(p.read_text() for p in (ROOT / "docs/api").glob("*.md"))
  shown = set(re.findall(r"^::: ([\w.]+)$", text, re.M))
  for package in (
    "neumann_jax",
    "neumann_jax.checkpoint",
    "neumann_jax.tuning",
    "posterior_jax",
    "posterior_jax.baselines",
    "posterior_jax.metrics",
    "posterior_jax.operators",
    "posterior_jax.priors",
  ):
    module = importlib.import_module(package)
    for name in module.__all__:
      found = getattr(module, name)
      documented = callable(found) and hasattr(found, "__module__")
      if documented and not hasattr(found, "__origin__"):
        assert f"{package}.{name}" in shown, f"{package}.{name}"


def _entries(nav):
  for entry in nav:
    value = next(iter(entry.values())) if isinstance(entry, dict) else entry
    yield from [value] if isinstance(value, str) else _entries(value)


def test_the_site_needs_nothing_of_others():
  text = (ROOT / "mkdocs.yml").read_text()
  site = yaml.safe_load(text)
  assert site["theme"]["font"] is False
  assert "http" not in text
  found = {f"docs/{page}" for page in _entries(site["nav"])}
  assert found == set(map(_name, PAGES))


def test_pages_are_short_of_words_that_this_field_does_not_use():
  for path in [*WRITTEN, ROOT / "CHANGELOG.md"]:
    text = path.read_text().split("## [0.1.0]")[0]
    for word in ("rival", "believes"):
      assert word not in text.lower(), f"{path.name}: {word}"


def test_code_in_tables_breaks_at_its_joints():
  hook = runpy.run_path(str(ROOT / "docs/code_breaks.py"))["on_page_content"]
  cell = "<td><code>pytest tests/test_docs.py --config.kernel_flip=True</code>"
  found = hook(f"<code>a/b</code>{cell}</td>")
  assert (
    re.sub("<wbr>|</?span[^>]*>", "", found) == f"<code>a/b</code>{cell}</td>"
  )
  assert "tests/<wbr>test_<wbr>docs.py " in found
  assert '<span class="whole">--config</span>.<wbr>kernel_<wbr>flip' in found
  command = '<div class="language-bash highlight"><code>a --b=c -d</code></div>'
  whole = '<code>a <span class="whole">--b</span>=c -d</code>'
  assert whole in hook(command) and hook("a --b") == "a --b"


def test_statements_of_a_formula_stand_apart():
  pytest.importorskip("latex2mathml")
  hook = runpy.run_path(str(ROOT / "docs/mathml.py"))["on_page_content"]
  found = hook(r'<div class="arithmatex">\[a = b, \qquad c = d\]</div>')
  assert found.count("<math") == 2 and "qquad" not in found
