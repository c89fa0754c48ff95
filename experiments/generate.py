"""Text from a Qwen3.5 or Qwen3-Next checkpoint under any chunk inverse.

  python -m experiments.generate --config.checkpoint=DIR --config.prompt=TEXT

Settings: `configs/generate.py`. The text appears as it is written; the last
lines printed say how fast, on what. The prompt is read as it stands, or as the
message of a user in the checkpoint's chat template.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import record, runner, writing
from experiments.harness.settings import DTYPES, Checked, setting
from experiments.harness.subjects import text_model
from neumann_jax import (
  Execution,
  Generated,
  InverseSpec,
  RuleOptions,
  SamplingSpec,
  generation,
)
from neumann_jax.generation.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is written, by what."""

  # a Hugging Face folder, or "random" for a small model of random weights,
  # which knows nothing: for the tests
  checkpoint: str
  prompt: str  # the text to go on with
  chat: bool  # whether the prompt is a user's message, to be answered
  # the text ends after so many, if no stop token came
  max_new_tokens: int = setting(at_least=1)
  temperature: float  # at least 0; 0 is greedy
  top_k: int = setting(at_least=0)  # tokens to draw from, 0 for all
  top_p: float  # share of the mass to draw from, in (0, 1]; 1 for all
  min_p: float  # share of the largest probability to draw from, 0 for all
  repetition_penalty: float  # of tokens that were there, 1 for none
  presence_penalty: float  # of tokens that were written, 0 for none
  seed: int  # of the draws, and of random weights
  spec: str  # name of the inverse, see `InverseSpec.parse`
  chunk_size: int  # C of the chunk-wise rule
  implementation: str  # of the inverse
  # of activations and of parameters
  dtype: str = setting(among=DTYPES)
  # tokens of a piece of the prompt; 0: pieces of 512 and 64
  prefill_chunk: int = setting(at_least=0)
  # equal layers are compiled once, but every token then copies their caches
  scan_layers: bool
  every: int = setting(at_least=1)  # tokens between two looks at the text

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self.prompt:
      raise ValueError("prompt must not be empty")
    self.execution()
    self.sampling()

  def sampling(self) -> SamplingSpec:
    """How tokens are drawn; at temperature 0 no cut says anything."""
    penalties: dict[str, Any] = {
      "repetition_penalty": self.repetition_penalty,
      "presence_penalty": self.presence_penalty,
    }
    if self.temperature == 0:
      return SamplingSpec(0.0, **penalties)
    top_p = None if self.top_p == 1 else self.top_p
    return SamplingSpec(
      self.temperature, self.top_k or None, top_p, self.min_p, **penalties
    )

  def execution(self) -> Execution:
    """How the model is computed."""
    dtype, spec = jnp.dtype(self.dtype), InverseSpec.parse(self.spec)
    rule = RuleOptions(
      self.chunk_size, spec, implementation=self.implementation
    )
    return Execution(dtype, dtype, rule, scan_layers=self.scan_layers)


class Writer(NamedTuple):
  """Everything that was read."""

  settings: Settings  # of the run
  tokenizer: Tokenizer  # of the checkpoint
  prompt: np.ndarray  # [T] int32
  # begins to write: what there is after the prompt, and so on
  looks: Callable[[], Iterator[generation.Texts]]


class Written(NamedTuple):
  """The text, and how long it took."""

  text: str  # without the prompt
  found: Generated  # the same in tokens, on the host
  prefill_s: float  # seconds from the prompt to the first token
  decode_s: float  # seconds of the tokens after it


def prepare(settings: Settings) -> Writer:
  """Reads the checkpoint and the prompt."""
  source = text_model.find(settings.checkpoint)
  tokenizer = generation.load_tokenizer(source.folder, source.config.vocab_size)
  prompt = settings.prompt
  if settings.chat:
    prompt = tokenizer.chat([{"role": "user", "content": prompt}])
  model = text_model.load(source, settings.execution(), settings.seed)
  looks = functools.partial(
    generation.stream_text,
    model,
    tokenizer,
    [prompt],
    every=settings.every,
    max_new_tokens=settings.max_new_tokens,
    spec=settings.sampling(),
    key=jax.random.key(settings.seed),
    prefill_chunk=settings.prefill_chunk or None,
  )
  looks()  # refuses what does not fit; nothing is computed before the first
  return Writer(settings, tokenizer, tokenizer.encode(prompt), looks)


def inputs(writer: Writer) -> dict[str, str]:
  """SHA-256 of the checkpoint's files."""
  source = text_model.find(writer.settings.checkpoint)
  return writing.digests("checkpoint", text_model.files(source))


def generate(writer: Writer, run: record.Run) -> None:
  """Writes the text to stdout and, with its times, to `generation.jsonl`."""
  settings = writer.settings
  start = time.perf_counter()
  for _ in zip(range(2), writer.looks()):
    pass
  compile_s = time.perf_counter() - start
  print(settings.prompt, end="", flush=True)
  written = write(writer, lambda text: print(text, end="", flush=True))
  print("\n")
  row = _row(writer, written)
  run.write("generation", row | {"first_s": compile_s})
  devices = ", ".join(run.environment["devices"])
  print(
    f"prefill {_speed(row, 'prefill')}; decode {_speed(row, 'decode')}, with "
    f"a look at the text every {settings.every}; batch 1, {settings.dtype}, "
    f"inverse {settings.spec!r}, measured on {devices} after a first run of "
    f"{compile_s:.1f} s, which compiles"
  )


def write(
  writer: Writer,  # from `prepare`
  # called with each new part of the text; characters that are not whole wait
  show: Callable[[str], None],
) -> Written:
  """Generates the text."""
  text, first_s = "", math.nan
  start = time.perf_counter()
  for look in writer.looks():
    if math.isnan(first_s):
      first_s = time.perf_counter() - start
    show(look.texts[0][len(text) :])
    text = look.texts[0]
  total_s = time.perf_counter() - start
  return Written(text, look.found, first_s, total_s - first_s)


def _row(writer: Writer, written: Written) -> dict:
  count = int(written.found.lengths[0])
  row = dataclasses.asdict(writer.settings) | {
    "text": written.text,
    "tokenizer": writer.tokenizer.name,
    "token_ids": " ".join(map(str, written.found.tokens[0, :count])),
    "mean_logprob": written.found.logprobs[0, :count].mean(),
    "stopped": bool(written.found.finished[0]),
  }
  for name, tokens, seconds in (
    ("prefill", len(writer.prompt), written.prefill_s),
    ("decode", count - 1, written.decode_s),
  ):
    row[f"{name}_tokens"] = tokens
    row[f"{name}_s"] = seconds
    row[f"{name}_tokens_per_s"] = tokens / seconds if tokens else None
  return row


def _speed(row: dict, part: str) -> str:
  speed = row[f"{part}_tokens_per_s"]
  tokens = f"{row[f'{part}_tokens']} tokens"
  return tokens if speed is None else f"{tokens}, {speed:,.1f} tokens/s"


if __name__ == "__main__":
  runner.main("generate", Settings, generate, prepare=prepare, inputs=inputs)
