"""What goes into a run stands in its record, by its hash."""

import ast
import hashlib
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import generate, prior_sources
from experiments.continuation import study as continuation
from experiments.data import photographs
from experiments.denoise import study as denoise
from experiments.few_calls import settings as few_calls
from experiments.harness import prior_files
from experiments.lm_accuracy import study as lm_accuracy
from experiments.quickstart import study as quickstart
from posterior_jax.priors import photo
from tests import oracles

ROOT = pathlib.Path(photographs.__file__).parents[1]


def _entries():
  """Calls of `runner.main`, by file."""
  for path in sorted(ROOT.rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Call) and ast.unparse(node.func) == "runner.main":
        yield path.relative_to(ROOT).as_posix(), node


def test_whoever_prepares_says_what_it_read():
  """`prepare` reads the files that the settings name, `inputs` hashes them."""
  found = {
    file: {keyword.arg for keyword in call.keywords}
    for file, call in _entries()
  }
  preparing = {file for file, given in found.items() if "prepare" in given}
  assert len(found) > 20 and len(preparing) > 10
  assert {file for file in preparing if "inputs" not in found[file]} == set()


def _digest(path):
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@pytest.fixture
def files(tmp_path):
  """A prior, and a folder of a picture."""
  (tmp_path / "own.json").write_text("{}")
  (tmp_path / "pictures").mkdir()
  pixels = np.zeros((8, 8, 3), np.float32)
  (tmp_path / "pictures/a.png").write_bytes(photographs.as_png(pixels))
  return tmp_path


def _of_pip(word, *names):
  paths = map(photographs.path, names)
  return {f"{word} {path.name}": _digest(path) for path in paths}


def test_restoring_experiments_hash_pictures_and_prior(files):
  prior, folder = str(files / "own.json"), str(files / "pictures")
  own = {"prior own.json": _digest(prior)}
  picture = _digest(files / "pictures/a.png")
  settings = SimpleNamespace(
    prior=prior,
    folder=folder,
    pictures=3,
    tuned_on="",
    photographs=("coffee",),
  )
  settings.other = settings.photograph = "astronaut"
  settings.restoration = settings
  task = SimpleNamespace(settings=settings, methods={})
  assert continuation.inputs((settings, object())) == own | {
    "photograph a.png": picture
  }
  # Without pictures nothing is read.
  assert continuation.inputs((settings, None)) == {}
  assert few_calls.inputs(task) == own | {"picture a.png": picture} | _of_pip(
    "tuned on", *photographs.TUNING
  )
  assert denoise.inputs(task) == own | _of_pip(
    "photograph", "coffee", "astronaut"
  )
  assert quickstart.inputs(task) == own | _of_pip("photograph", "astronaut")


@pytest.mark.parametrize(
  "prior, file", [("", "photo_prior.json"), ("large", "photo_prior_large.json")]
)
def test_a_shipped_prior_is_hashed_too(prior, file, monkeypatch, tmp_path):
  """Another version may have another one, under which no run goes on."""
  assert prior_files.digests(prior) == {
    f"prior {file}": _digest(photo.SHIPPED[prior or "small"])
  }
  assert prior_files.digests("gaussian") == {}
  # A folder of that name in the working directory is another thing.
  (tmp_path / "large").mkdir()
  (tmp_path / "large/config.json").write_text("{}")
  monkeypatch.chdir(tmp_path)
  assert prior_files.digests(prior).keys() == {f"prior {file}"}
  assert prior_files.digests("./large").keys() == {"prior config.json"}


def test_language_experiments_hash_text_and_weights(files, monkeypatch):
  (files / "model").mkdir()
  (files / "model/config.json").write_text("{}")
  weights = _digest(files / "model/config.json")
  settings = SimpleNamespace(model=str(files / "model"), data="")
  monkeypatch.setattr(lm_accuracy.text_data, "held_out_text", lambda _: [])
  found = lm_accuracy.inputs(SimpleNamespace(settings=settings))
  nothing = hashlib.sha256().hexdigest()
  assert found == {"held-out text": nothing, "model config.json": weights}
  settings.model = "shipped"
  found = lm_accuracy.inputs(SimpleNamespace(settings=settings))
  file = lm_accuracy.SHIPPED
  assert found == {
    "held-out text": nothing,
    "model language_model.json": _digest(file),
  }
  settings.checkpoint = "any"
  source = generate.text_model.Source(files / "model", None)
  monkeypatch.setattr(generate.text_model, "find", lambda _: source)
  found = generate.inputs(SimpleNamespace(settings=settings))
  assert found == {"checkpoint config.json": weights}


def test_what_is_tuned_on_is_neither_learned_from_nor_reported(tmp_path):
  """Every third photograph of animals and buildings, by name."""
  settings = SimpleNamespace(tuned_on=str(tmp_path))
  with oracles.refused(ValueError, "filled, it has no cat.webp"):
    few_calls.tuning_files(settings)
  known = sorted(prior_sources.names())
  shown = [
    name
    for name in known
    if any(f"/{activity}/" in name for activity in few_calls.ACTIVITIES)
  ]
  assert len(shown) == 72
  for name in shown:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(name.encode())
  files = few_calls.tuning_files(settings)
  assert [file.read_bytes().decode() for file in files] == shown[::3]
  # Of the 69 that the shipped prior learned from none is Debian's.
  assert all(
    file.is_relative_to(tmp_path / "gcompris-qt-data-3.1-2") for file in files
  )
