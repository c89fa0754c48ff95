"""The promises of the repository itself: names, commands, docs, hygiene."""

import ast
import importlib
import inspect
import itertools
import json
import pathlib
import re
import runpy
import shlex
import subprocess

import pytest

import neumann_jax
import posterior_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The public surface with its parameters; a bare `*` starts keyword-only ones.
SIGNATURES = {
  "neumann_jax.InverseSpec": (
    "method='ladder', order=None, residual_steps=None, mask_every_step=False, "
    "block=None, refine=0, precision='float32', quant=None"
  ),
  "neumann_jax.QuantSpec": "bits=8, scale='envelope', integer=False",
  "neumann_jax.inverse": (
    "a, spec=InverseSpec(), *, envelope=None, gradient='implicit', "
    "implementation='auto'"
  ),
  "neumann_jax.envelope": "beta, log_decay, *, key_norm=1.0",
  "neumann_jax.certify": "a, t, envelope",
  "neumann_jax.plan": (
    "chunk_size, *, tolerance, precision='float32', quant=None, beta_max=1.0, "
    "log_decay=None"
  ),
  "neumann_jax.gated_delta_rule": (
    "q, k, v, log_decay, beta, *, scale=None, initial_state=None, "
    "segment_ids=None, chunk_size=64, spec=InverseSpec(), fused=False, "
    "implementation='auto'"
  ),
  "neumann_jax.gated_delta_step": (
    "q, k, v, log_decay, beta, state, *, scale=None"
  ),
  "posterior_jax.Observation": "y, operator, noise_std",
  "posterior_jax.nfc": "config, *, spectrum=None",
  "posterior_jax.run": ("sampler, denoise, observation, key, *, num_samples=1"),
}
OPERATORS = (
  "super_resolution",
  "box_inpainting",
  "random_inpainting",
  "gaussian_blur",
  "motion_blur",
)


def _find(path):
  module, name = path.rsplit(".", 1)
  return getattr(importlib.import_module(module), name)


def _described(parameters):
  """Names, keyword-only marks and defaults, without annotations."""
  parts, keyword_only = [], False
  for p in parameters.values():
    if p.kind is p.KEYWORD_ONLY and not keyword_only:
      parts.append("*")
      keyword_only = True
    default = p.default
    if isinstance(default, neumann_jax.InverseSpec):
      assert default == neumann_jax.InverseSpec()
      parts.append(f"{p.name}=InverseSpec()")
    else:
      parts.append(p.name if default is p.empty else f"{p.name}={default!r}")
  return ", ".join(parts)


@pytest.mark.parametrize("path", SIGNATURES)
def test_public_signature(path):
  found = _described(inspect.signature(_find(path)).parameters)
  assert found == SIGNATURES[path]


def test_other_public_names():
  from flax import nnx

  assert issubclass(neumann_jax.GatedDeltaNet, nnx.Module)
  plan = neumann_jax.plan(16, tolerance=1e-3)
  fields = ("spec", "products", "truncation", "rounding", "reason")
  assert plan._fields == fields
  assert posterior_jax.Sampler._fields[:2] == ("init", "step")
  for name in (
    *("paper", "restoration", "fast", "perceptual", "guided", "calibrated"),
  ):
    assert isinstance(
      getattr(posterior_jax.NFCConfig, name)(), posterior_jax.NFCConfig
    )
  operator = posterior_jax.base.Operator
  for name in OPERATORS:
    build = getattr(posterior_jax.operators, name)
    returned = inspect.signature(build).return_annotation
    assert inspect.isclass(returned) and issubclass(returned, operator)
  for name in ("forward", "adjoint", "normal_solve"):
    assert callable(getattr(operator, name))
  for name in ("psnr", "ssim"):
    assert callable(getattr(posterior_jax.metrics, name))


def test_packages_do_not_import_each_other():
  for package, other in (
    ("neumann_jax", "posterior_jax"),
    ("posterior_jax", "neumann_jax"),
  ):
    for path in (ROOT / package).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
          names = [alias.name for alias in node.names]
          module = getattr(node, "module", None) or ""
          assert not any(n.startswith(other) for n in [module, *names]), path
          assert not module.startswith("jax._src"), path


CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_says_command_time_and_expected(name):
  module = importlib.import_module(f"configs.{name}")
  for word in ("Command:", "Time:", "Expected:"):
    assert word in module.__doc__
  assert f"python -m experiments.{name}" in module.__doc__
  assert importlib.util.find_spec(f"experiments.{name}") is not None
  forms = re.findall(rf"configs/{name}\.py:(\w+)", module.__doc__)
  for form in ["", *forms]:
    assert module.get_config(form)
  with pytest.raises(ValueError, match="form"):
    module.get_config("no such form")


# What an experiment cannot do without and its user must give.
GIVEN = {
  "equal_tuning": {"folder": str(ROOT / "notebooks/figures")},
  "few_calls": {"folder": str(ROOT / "notebooks/figures")},
  "restore": {
    "image": str(ROOT / "notebooks/figures/restoration.jpg"),
    "task": "denoising",
  },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_settles_into_its_dataclass(name, monkeypatch):
  from experiments.harness import command_line, runner
  from experiments.peers import gpu

  given = []
  monkeypatch.setattr(gpu, "share_memory", lambda: None)
  monkeypatch.setattr(runner, "main", lambda *args, **_: given.append(args))
  runpy.run_module(f"experiments.{name}", run_name="__main__")
  ((called, settings, *_),) = given
  assert called == name
  config = importlib.import_module(f"configs.{name}").get_config()
  config.update(GIVEN.get(name, {}))
  command_line.to_settings(settings, config)


def commands(text):
  """Lines of the bash blocks of a markdown text, comments cut off."""
  for block in re.findall(r"```bash\n(.*?)```", text, re.S):
    for line in block.replace("\\\n", " ").splitlines():
      words = shlex.split(line, comments=True)
      if words:
        yield words


def check_commands(found):
  """Modules, extras, configs and scripts that commands name are there."""
  setup = (ROOT / "setup.py").read_text()
  for words in found:
    for before, word in itertools.pairwise(words):
      if before == "-m" and word not in ("venv", "pip", "slow"):
        assert importlib.util.find_spec(word) is not None, word
      if match := re.fullmatch(r"\.\[([\w,]+)\]", word):
        for extra in match[1].split(","):
          assert f'"{extra}":' in setup, extra
    for word in words:
      if word.startswith("--config="):
        assert (ROOT / word.split("=")[1].split(":")[0]).exists(), word
      if word.startswith(".ci/"):
        assert (ROOT / word).exists(), word


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_name_real_things(file):
  found = list(commands((ROOT / file).read_text()))
  assert found
  check_commands(found)


def test_readme_and_ci_use_the_same_test_command():
  readme = (ROOT / "README.md").read_text()
  ci = (ROOT / ".ci/run").read_text().strip()
  assert ci.endswith("\n.venv/bin/python -m pytest")
  assert ".venv/bin/python -m pytest\n" in readme


# In two levels, which are the same program.
@pytest.mark.parametrize(
  "levels", [2, pytest.param(10, marks=pytest.mark.slow)]
)
def test_readme_examples_run(levels):
  text = (ROOT / "README.md").read_text()
  examples = re.findall(r"```python\n(.*?)```", text, re.S)
  assert len(examples) == 2
  inverse, restoration = ({} for _ in examples)
  exec(examples[0], inverse)
  assert inverse["bound"].shape == inverse["t"].shape
  assert (inverse["bound"] < 0.1).all()
  assert "levels=10" in examples[1]
  exec(examples[1].replace("levels=10", f"levels={levels}"), restoration)
  shown = re.search(r"# \[([\d, ]+)\]", examples[1])[1]
  assert restoration["samples"].shape == tuple(map(int, shown.split(",")))


def test_readme_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_workflows_cover_what_setup_allows():
  setup = (ROOT / "setup.py").read_text()
  ci = (ROOT / ".github/workflows/ci.yml").read_text()
  named = re.findall(r"Python :: (3\.\d+)", setup)
  assert re.search(r"python: \[(.*)\]", ci)[1] == ", ".join(
    f'"{version}"' for version in named
  )
  low, high = re.search(r'"jax>=([\d.]+),<([\d.]+)"', setup).groups()
  oldest, newest = re.findall(r'"jax>=([\d.]+),<([\d.]+)"', ci)
  assert oldest[0] == low and newest[1] == high
  assert "run: .ci/run" in ci
  nightly = (ROOT / ".github/workflows/nightly.yml").read_text()
  assert "python -m pytest -m slow\n" in nightly
  optimised = nightly.index("python -m pytest\n")
  words = nightly[optimised:].split()[3:6]
  assert words == ["env:", "FULL_COMPILATION:", '"1"']
  parity = nightly[nightly.index("test,parity") :]
  assert "-m slow tests/test_finetune_parity.py\n" in parity
  assert 'PARITY: "1"' in parity and '"parity": [' in setup


def test_readme_links_and_pictures_exist():
  text = (ROOT / "README.md").read_text()
  for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text):
    path = target[0] or target[1]
    if not path.startswith("http"):
      assert (ROOT / path).exists(), path
      assert (ROOT / path).stat().st_size < 400_000, path


def _tracked():
  listed = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip("not a git checkout")
  return [ROOT / line for line in listed.stdout.splitlines()]


def test_no_path_of_one_machine_in_tracked_files():
  places = {str(ROOT), str(ROOT.parent), str(pathlib.Path.home())} - {"/"}
  for path in _tracked():
    if not path.is_file() or path.suffix in (".npz", ".png"):
      continue
    text = path.read_text(errors="replace")
    for place in places:
      found = re.search(re.escape(place) + r"(?=[/\s\"'])", text)
      assert not found, f"{path.name} names {place}"


def test_no_large_file_is_tracked():
  # Weights that ship: 5 and 7 million parameters of 16 bits, 14.5 of 8.
  ours = "photo_prior", "photo_prior_large", "language_model"
  allowed = {f"{name}.safetensors": 16_000_000 for name in ours}
  for path in _tracked():
    limit = allowed.get(path.name, 5_000_000)
    assert not path.is_file() or path.stat().st_size < limit, path


@pytest.mark.parametrize(
  "room", ["neumann_jax", "posterior_jax", "experiments"]
)
def test_a_folder_has_few_modules(room):
  """A newcomer reads its listing; 20 are many."""
  for folder in {file.parent for file in (ROOT / room).rglob("*.py")}:
    assert len(list(folder.glob("*.py"))) <= 20, folder


def test_a_type_of_equal_tuning_has_a_name_of_its_own():
  """Classes and aliases; two that were called Standings were not one."""
  found = []
  for file in (ROOT / "experiments/equal_tuning").rglob("*.py"):
    for node in ast.parse(file.read_text()).body:
      if isinstance(node, ast.ClassDef):
        found.append(node.name)
      elif isinstance(node, ast.Assign) and isinstance(
        node.value, ast.Subscript
      ):
        found += [x.id for x in node.targets if isinstance(x, ast.Name)]
  assert "KernelStandings" in found and "Standings" in found
  assert len(found) == len(set(found)), sorted(found)


def test_changelog_knows_the_version():
  changelog = (ROOT / "CHANGELOG.md").read_text()
  assert f"## [{neumann_jax.__version__}]" in changelog


def test_notebooks_are_stripped():
  for path in (ROOT / "notebooks").glob("*.ipynb"):
    for cell in json.loads(path.read_text())["cells"]:
      assert not cell.get("outputs") and not cell.get("execution_count")
