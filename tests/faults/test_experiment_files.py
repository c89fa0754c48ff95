"""Files that experiments are told to read are refused before there is a run.

Nothing is computed, no folder is made, and one sentence says what was wrong.
"""

import importlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from experiments.harness import command_line, runner
from tests.faults import kinds
from tests.faults.drive import drive

# Fields of configs that name files, or folders of files.
FIELDS = {
  *("adapters", "checkpoint", "data", "folder", "held_out", "image", "kernel"),
  *("lpips", "mask", "model", "operator", "photographs", "prior", "text"),
}


def _changed_weights(path):
  """A prior, or a model, with a flipped bit."""
  weights = path / "m.safetensors"
  data = bytearray(weights.read_bytes())
  data[-1] ^= 1
  weights.write_bytes(data)
  return path / "m.json"


def _prior(path):
  kinds.prior_files(path)
  return _changed_weights(path)


def _model(path):
  kinds.model_files(path)
  return _changed_weights(path)


def _checkpoint(path):
  """A model and a tokenizer, with one weight that is no number."""
  kinds.text_model(path)
  kinds.tokenizer(path)
  file = path / "model.safetensors"
  held = safetensors.numpy.load(file.read_bytes())
  held["model.embed_tokens.weight"].flat[3] = np.nan
  data = safetensors.numpy.save(held, metadata={"format": "pt"})
  file.write_bytes(data)
  return path


def _full_tuning(path):
  """A sound checkpoint beside what cannot be written over in the end."""
  kinds.text_model(path)
  kinds.tokenizer(path)
  (path / "a.safetensors").write_bytes(b"1234")
  return path


def _adapters(path):
  """A folder with half of its files."""
  (path / "adapter_config.json").write_text('{"peft_type": "LORA"')
  return path


def _broken(ending, data=b"\xff"):
  def make(path):
    (path / f"a{ending}").write_bytes(data)
    return path / f"a{ending}"

  return make


def _pictures(path):
  return _broken(".png")(path).parent


def _empty(path):
  return path


CASES = {
  ("blurred_photographs", "folder"): _pictures,
  ("blurred_photographs", "prior"): _prior,
  ("continuation", "folder"): _pictures,
  ("continuation", "prior"): _prior,
  ("denoise", "prior"): _prior,
  ("equal_tuning", "folder"): _pictures,
  ("equal_tuning", "lpips"): _broken(".npz"),
  ("equal_tuning", "prior"): _prior,
  ("equal_tuning", "photographs"): _pictures,
  ("evaluate_lm", "checkpoint"): _checkpoint,
  ("evaluate_lm", "text"): _broken(".txt"),
  ("few_calls", "folder"): _pictures,
  ("few_calls", "prior"): _prior,
  ("finetune", "adapters"): _adapters,
  ("finetune", "checkpoint"): _checkpoint,
  ("finetune", "data"): _broken(".txt"),
  ("finetune", "held_out"): _broken(".jsonl", b"{"),
  ("generate", "checkpoint"): _checkpoint,
  ("gradient_study", "data"): _empty,
  ("lm_accuracy", "data"): _empty,
  ("lm_accuracy", "model"): _model,
  ("phase_retrieval", "folder"): _pictures,
  ("phase_retrieval", "prior"): _prior,
  ("quickstart", "restoration.prior"): _prior,
  ("restoration", "setup.folder"): _pictures,
  ("restoration", "setup.lpips"): _broken(".npz"),
  ("restoration", "setup.prior"): _prior,
  ("restore", "image"): _broken(".png"),
  ("restore", "kernel"): _broken(".npy"),
  ("restore", "mask"): _broken(".png"),
  ("restore", "operator"): _broken(".py", b"x = 1\n"),
  ("restore", "prior"): _prior,
  ("train_lm", "data"): _empty,
  ("train_prior", "photographs"): _pictures,
  ("tune_samplers", "setup.folder"): _pictures,
  ("tune_samplers", "setup.lpips"): _broken(".npz"),
  ("tune_samplers", "setup.prior"): _prior,
}


def _options(name, field, place):
  """What else the experiment must be told to come as far as the file."""
  sound = place / "sound"
  sound.mkdir()
  if name == "finetune" and field == "checkpoint":
    (sound / "a.txt").write_text("a b " * 400)
    return [f"--config.data={sound}"]
  reads = (
    *("blurred_photographs", "continuation", "few_calls", "phase_retrieval"),
    "restore",
  )
  if name == "equal_tuning":
    kinds.pictures(sound)
    others = {"folder", "photographs"} - {field}
    return [f"--config.{other}={sound}" for other in sorted(others)]
  if name in reads and field not in ("folder", "image"):
    kinds.pictures(sound)
    shutil.copy(sound / "p.png", sound / "q.png")
    if name != "restore":
      return [f"--config.folder={sound}"]
    given = {
      "kernel": "motion_blur",
      "mask": "random_inpainting",
      "operator": "custom",
      "prior": "denoising",
    }
    task = f"--config.task={given[field]}"
    return [f"--config.image={sound / 'p.png'}", task, "--config.noise_std=0.1"]
  return ["--config.task=denoising"] if field == "image" else []


@pytest.mark.parametrize(
  "case",
  [
    # Takes seconds; `test_shipped.py` refuses such files too.
    pytest.param(
      x, marks=pytest.mark.slow if x == ("lm_accuracy", "model") else []
    )
    for x in CASES
  ],
  ids=" ".join,
)
def test_a_broken_file_is_refused_before_the_run(case, tmp_path, capsys):
  name, field = case
  _refused(name, field, CASES[case], tmp_path, capsys)


def test_what_cannot_be_written_in_the_end_is_refused_first(tmp_path, capsys):
  """A tuned checkpoint is the old one with other weights."""
  full = "--config.tuning=full", "--config.execution.param_dtype=float32"
  said = _refused(
    "finetune", "checkpoint", _full_tuning, tmp_path, capsys, *full
  )
  assert "a.safetensors is truncated or not safetensors" in said


def _refused(name, field, make, tmp_path, capsys, *options):
  (tmp_path / "file").mkdir()
  file = make(tmp_path / "file")
  run = tmp_path / "run"
  with pytest.raises(SystemExit) as left:
    drive(
      name,
      f"--config=configs/{name}.py:debug",
      *_options(name, field, tmp_path),
      f"--config.{field}={file}",
      f"--workdir={run}",
      *options,
    )
  said = capsys.readouterr().err
  assert left.value.code == runner.USAGE, said
  assert said.startswith(f"{name}: ") and said.count("\n") == 1, said
  # The sentence is of this file, not of something else that was missing.
  words = (
    str(tmp_path / "file"),
    field.split(".")[-1],
    *("m.safetensors", "a.npz", "a.png"),
  )
  assert any(word in said for word in words), said
  assert not run.exists()
  return said


def test_every_field_that_names_files_has_a_case():
  found = set()
  for path in command_line.CONFIGS.glob("[!_]*.py"):
    config = importlib.import_module(f"configs.{path.stem}").get_config("debug")
    for leaf, value in command_line._leaves(config):
      if isinstance(value, str) and leaf.split(".")[-1] in FIELDS:
        found.add((path.stem, leaf))
  assert found == set(CASES)
