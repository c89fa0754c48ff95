"""Perplexity of a Qwen3.5 or Qwen3-Next checkpoint under each chunk inverse.

  python -m experiments.evaluate_lm --config.checkpoint=DIR --config.text=FILE

Settings: `configs/evaluate_lm.py`. Every combination of weights, chunk size
and inverse reads the same windows of the text and is compared with the exact
float32 inverse under the same weights. `--resume` goes on after the rows that
`--workdir` has. The last line printed names the report.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from experiments.data import text_tokens
from experiments.evaluate_lm import report as evaluate_report
from experiments.evaluate_lm import scores
from experiments.evaluate_lm import sweep as evaluate_sweep
from experiments.evaluate_lm.sweep import AS_TRAINED, Case
from experiments.harness import record, text_model
from experiments.harness.progress import Progress
from experiments.harness.report import shown
from experiments.inverse_speed import cases as speed_cases
from neumann_jax import Execution, LanguageModel, RuleOptions
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size
from neumann_jax.weight_quantization import matrix

EXACT = "exact float32"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is evaluated, on what.

  Attributes:
    checkpoint: a Hugging Face folder, or "random" for a small model of random
      weights and slow decays, which knows nothing: for the tests.
    text: a UTF-8 file; "" means sources of the Python standard library.
    max_tokens: of the text, from its beginning; 0 means all.
    window: tokens that a prediction can see, and its own: the text is cut into
      independent windows, nothing is carried from one to the next.
    batch: windows computed at a time.
    specs: names of the inverses, see `speed_cases.parse`; "exact float32" is
      evaluated whether named or not.
    chunk_sizes: C, powers of two.
    weights: "none" for the weights as trained, or a name of
      `weight_quant.PRESETS`.
    inverse_windows: windows whose chunk matrices are inverted in float64.
    tolerance: of `neumann_jax.plan`: the largest row sum of |T - X|.
    implementation: of the inverse.
    dtype: of activations and of parameters.
    seed: of random weights.
  """

  checkpoint: str
  text: str
  max_tokens: int
  window: int
  batch: int
  specs: tuple[str, ...]
  chunk_sizes: tuple[int, ...]
  weights: tuple[str, ...]
  inverse_windows: int
  tolerance: float
  implementation: str
  dtype: str
  seed: int

  def __post_init__(self) -> None:
    for name in ("specs", "chunk_sizes", "weights"):
      values = getattr(self, name)
      if isinstance(values, str) or not values:
        raise ValueError(
          f"{name} must be a tuple of at least one, got {values}"
        )
      if len(set(values)) < len(values):
        raise ValueError(f"{name} must not repeat, got {values}")
    for name, least in (
      ("window", 2),
      ("batch", 1),
      ("inverse_windows", 1),
      ("max_tokens", 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} must be at least {least}, got {getattr(self, name)}"
        )
    if not self.tolerance > 0:
      raise ValueError(f"tolerance must be positive, got {self.tolerance}")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
    self.check_chunks(self.window, "the window's")
    for name in self.weights:
      if name != AS_TRAINED:
        matrix.preset(name)
    self.cases()

  def check_chunks(self, tokens: int, whose: str) -> None:
    """Raises ValueError for a chunk longer than `tokens`."""
    for size in self.chunk_sizes:
      check_chunk_size(size, name="chunk_sizes")
      if size > tokens:
        raise ValueError(
          f"chunk_sizes must be at most {whose} {tokens} tokens, got {size}"
        )

  def cases(self) -> list[Case]:
    """The sweep, weights outermost; the exact inverse first."""
    names = dict.fromkeys((EXACT, *self.specs))
    return [
      Case(
        weights,
        speed_cases.parse(name, size, self.implementation),
        size,
      )
      for weights in self.weights
      for size in self.chunk_sizes
      for name in names
    ]


class Evaluation(NamedTuple):
  """Everything that was read.

  Attributes:
    settings: of the sweep.
    model: under the exact float32 inverse.
    text: in tokens.
  """

  settings: Settings
  model: LanguageModel
  text: scores.Text


def prepare(settings: Settings) -> Evaluation:
  """Reads the checkpoint and the text.

  Raises:
    FileNotFoundError: a file of the checkpoint is missing.
    ImportError: its tokenizer needs a package that is not there.
    ValueError: a file is corrupt, or the text is too short.
  """
  source = text_model.find(settings.checkpoint)
  config = source.config
  tokenizer = text_tokens.load_tokenizer(source.folder, config.vocab_size)
  text = scores.read_text(settings.text, tokenizer, settings.max_tokens)
  settings.check_chunks(len(text.tokens), "the text's")
  execution = Execution(
    dtype=jnp.dtype(settings.dtype),
    param_dtype=jnp.dtype(settings.dtype),
    rule=RuleOptions(
      settings.chunk_sizes[0],
      speed_cases.parse(EXACT, settings.chunk_sizes[0], "xla").spec,
    ),
    scan_layers=config.period < config.num_hidden_layers,
  )
  model = text_model.load(source, execution, settings.seed)
  return Evaluation(settings, model, text)


def evaluate_lm(evaluation: Evaluation, run: record.Run) -> None:
  """Measures what is missing, writes tables and `report.html`."""
  settings, model, text = evaluation
  width = min(settings.window, len(text.tokens))
  windows = scores.windows(text, width)
  sweep = evaluate_sweep.Sweep(settings, model, windows, run)
  with Progress(sweep.missing(), label="evaluate_lm") as tick:
    sweep.run(tick)
  rows = evaluate_report.summaries(run.rows("windows"), settings.cases(), text)
  known = {
    (r["weights"], r["chunk_size"], r["spec"]) for r in run.rows("cases")
  }
  for row in rows:
    if row[:3] not in known:
      run.write("cases", row._asdict())
  report = evaluate_report.build(evaluation, windows, rows, run)
  print(evaluate_report.closing(rows))
  print(f"report: {shown(report.write(run.folder / 'report.html'))}")
