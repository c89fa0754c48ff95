"""Perplexity of a Qwen3.5 or Qwen3-Next checkpoint under each chunk inverse.

  python -m experiments.evaluate_lm --config.checkpoint=DIR --config.text=FILE

Settings: `configs/evaluate_lm.py`. Every combination of weights, chunk size
and inverse reads the same windows of the text and is compared with the exact
float32 inverse under the same weights. `--resume` goes on after the rows that
`--workdir` has. The last line printed names the report.
"""

from typing import NamedTuple

import jax.numpy as jnp

from experiments.data import text_windows
from experiments.data.text_windows import Text
from experiments.evaluate_lm import report
from experiments.evaluate_lm.settings import Settings
from experiments.evaluate_lm.sweep import KEYS, Sweep
from experiments.harness import record, writing
from experiments.harness.processes import hosts
from experiments.harness.progress import Progress
from experiments.harness.subjects import text_model
from neumann_jax import (
  Execution,
  InverseSpec,
  LanguageModel,
  RuleOptions,
  generation,
)


class Evaluation(NamedTuple):
  """Everything that was read."""

  settings: Settings  # of the sweep
  model: LanguageModel  # under the exact float32 inverse
  text: Text  # in tokens


def prepare(settings: Settings) -> Evaluation:
  """Reads the checkpoint and the text."""
  hosts.end_on_sigterm()
  source = text_model.find(settings.checkpoint)
  config = source.config
  tokenizer = generation.load_tokenizer(source.folder, config.vocab_size)
  text = text_windows.read_text(settings.text, tokenizer, settings.max_tokens)
  settings.check_chunks(len(text.tokens), "the text's")
  dtype = jnp.dtype(settings.dtype)
  execution = Execution(
    dtype,
    dtype,
    RuleOptions(settings.chunk_sizes[0], InverseSpec("exact")),
    scan_layers=config.period < config.num_hidden_layers,
  )
  model = text_model.load(source, execution, settings.seed)
  return Evaluation(settings, model, text)


def inputs(evaluation: Evaluation) -> dict[str, str]:
  """SHA-256 of the text and of the checkpoint's files."""
  settings = evaluation.settings
  found = writing.digests("text", text_windows.files(settings.text))
  source = text_model.find(settings.checkpoint)
  return found | writing.digests("checkpoint", text_model.files(source))


def evaluate_lm(evaluation: Evaluation, run: record.Run) -> None:
  """Measures what is missing, writes tables and `report.html`."""
  settings, model, text = evaluation
  width = min(settings.window, len(text.tokens))
  sweep = Sweep(settings, model, text_windows.windows(text, width), run)
  with Progress(sweep.units(), label="evaluate_lm") as tick:
    sweep.measure(tick)
  cases = report.summary(run.frame("windows"), settings.cases(), text)
  for row in cases.to_dict("records"):
    run.write_once("cases", row, KEYS)
  page = report.build(evaluation, sweep.windows, cases, run)
  print(report.closing(cases))
  page.leave(run.folder)
