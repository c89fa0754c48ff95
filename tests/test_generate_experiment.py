"""The text experiment: what it prints, what it leaves, what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import generate as config
from experiments import generate
from experiments.harness import command_line, runner
from experiments.harness.subjects import text_model
from neumann_jax import Generated, SamplingSpec, checkpoint, generation
from neumann_jax.generation import text as text_parts
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_compilation")


def settings(**changes):
  given = config.get_config("debug").to_dict()
  return command_line.to_settings(generate.Settings, given | changes)


def main(folder, *arguments):
  runner.main(
    "generate",
    generate.Settings,
    generate.generate,
    [
      "generate",
      "--config=configs/generate.py:debug",
      f"--workdir={folder}",
      *arguments,
    ],
    prepare=generate.prepare,
  )
  return json.loads((folder / "generation.jsonl").read_text())


def save(folder, layers):
  """The random model's first layers, as a checkpoint without a tokenizer."""
  config = text_model.random_config()
  config = dataclasses.replace(
    config, num_hidden_layers=layers, layer_types=config.layer_types[:layers]
  )
  source = text_model.Source(None, config)
  checkpoint.save(text_model.load(source, settings().execution(), 0), folder)
  return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  return save(tmp_path_factory.mktemp("checkpoint") / "model", 2)


def test_a_checkpoint_goes_on_with_the_prompt(saved, tmp_path, capsys):
  row = main(
    tmp_path / "out",
    f"--config.checkpoint={saved}",
    "--config.prompt=na\u00efve",
    "--config.temperature=0",
    "--config.top_k=0",
    "--config.top_p=1.0",
  )
  printed = capsys.readouterr().out
  assert printed.startswith(f"na\u00efve{row['text']}\n")
  assert "measured on cpu" in printed.splitlines()[-1]
  prompt = list("na\u00efve".encode())
  truth = jax.device_get(
    generation.generate(
      checkpoint.load(saved, settings().execution()),
      [prompt],
      max_new_tokens=12,
      spec=SamplingSpec(0),
      prefill_chunk=settings().prefill_chunk,  # by the programs of the run
    )
  )
  assert row["token_ids"] == " ".join(map(str, truth.tokens[0]))
  assert row["text"] == bytes(truth.tokens[0].tolist()).decode(errors="replace")
  np.testing.assert_allclose(
    row["mean_logprob"], truth.logprobs.mean(), rtol=1e-4
  )
  assert (row["prefill_tokens"], row["decode_tokens"]) == (6, 11)
  for part in ("prefill", "decode"):
    speed = row[f"{part}_tokens"] / row[f"{part}_s"]
    assert 0 < row[f"{part}_tokens_per_s"] == pytest.approx(speed)


@pytest.mark.slow
def test_stop_tokens_and_seeds(tmp_path):
  """The same seed writes the same text; a stop token ends it."""
  saved = save(tmp_path / "model", 4)  # layers that repeat can be scanned
  given = f"--config.checkpoint={saved}", "--config.scan_layers"
  first = main(tmp_path / "a", *given)
  again = main(tmp_path / "b", *given, "--config.every=5")
  other = main(tmp_path / "c", *given, "--config.seed=1")
  assert first["token_ids"] == again["token_ids"] != other["token_ids"]
  ids = first["token_ids"].split()
  stops = saved / "generation_config.json"
  stops.write_text(json.dumps({"eos_token_id": [int(ids[2])]}))
  ended = main(tmp_path / "d", *given)
  stops.unlink()
  count = ids.index(ids[2]) + 1
  assert ended["token_ids"].split() == ids[:count]
  assert ended["stopped"] and not first["stopped"]
  single = main(tmp_path / "e", *given, "--config.max_new_tokens=1")
  assert single["decode_tokens"] == 0
  assert single["decode_tokens_per_s"] is None


def test_characters_are_shown_when_they_are_whole():
  text = "a\u20ac\N{GRINNING FACE}z"
  data = np.frombuffer(text.encode() + b"\xf0", np.uint8).astype(np.int32)

  tokenizer = generation.load_tokenizer(None, 256)

  def looks():
    for count in range(1, len(data) + 1):
      found = Generated(
        data[None], data[None] * 0.0, np.array([count]), [False]
      )
      read = tokenizer.decode(data[:count])
      shown = text_parts._shown(read, (), count == len(data))
      yield generation.Texts((shown,), found)

  shown = []
  writer = generate.Writer(settings(), tokenizer, data, looks)
  written = generate.write(writer, shown.append)
  assert [part for part in shown if part] == [*text, text_parts.UNFINISHED]
  assert written.text == "".join(shown)


REFUSALS = {
  "no prompt": ({"prompt": ""}, "prompt must not be empty"),
  "unknown spec": ({"spec": "lader float32"}, "got 'lader float32'"),
  "chunk": ({"chunk_size": 24}, "chunk_size must be a power of two"),
  "dtype": ({"dtype": "float64"}, "dtype must be float32 or bfloat16"),
  "every": ({"every": 0}, "every must be at least 1, got 0"),
  "top_k": ({"top_k": -1}, "top_k must be at least 0, got -1"),
  "top_p": ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
  "temperature": ({"temperature": -1.0}, "temperature must be finite"),
}


def test_temperature_0_is_greedy():
  assert settings(temperature=0.0, top_k=20).sampling() == SamplingSpec(0.0)


@pytest.mark.parametrize("case", REFUSALS)
def test_settings_are_refused(case):
  changes, pattern = REFUSALS[case]
  with oracles.refused(command_line.UsageError, pattern):
    settings(**changes)


FILES = {
  "no folder": ([], "checkpoint must name a folder: give --config.checkpoint"),
  "nowhere": (["--config.checkpoint=/nowhere"], "'/nowhere' is not a folder"),
  "negative piece": (
    ["--config.checkpoint=random", "--config.prefill_chunk=-1"],
    "prefill_chunk must be at least 0, got -1",
  ),
  "no tokens": (
    ["--config.checkpoint=random", "--config.max_new_tokens=0"],
    "max_new_tokens must be at least 1, got 0",
  ),
}


@pytest.mark.parametrize("case", FILES)
def test_what_cannot_be_written_leaves_nothing(case, tmp_path, capsys):
  arguments, sentence = FILES[case]
  if not arguments:
    arguments = ["--config.checkpoint="]
  with pytest.raises(SystemExit) as ended:
    main(tmp_path / "out", *arguments)
  assert ended.value.code == 2
  told = capsys.readouterr().err.strip()
  assert told.startswith("generate: ") and "\n" not in told
  assert sentence in told
  assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint_leaves_nothing(saved, tmp_path, capsys):
  cut = tmp_path / "cut"
  cut.mkdir()
  for file in saved.iterdir():
    data = file.read_bytes()
    whole = file.suffix != ".safetensors"
    (cut / file.name).write_bytes(data if whole else data[: len(data) // 2])
  with pytest.raises(SystemExit):
    main(tmp_path / "out", f"--config.checkpoint={cut}")
  told = capsys.readouterr().err.strip()
  assert told.startswith("generate: ") and "safetensors" in told
  assert "\n" not in told and not (tmp_path / "out").exists()
