"""Trains the hybrid model on bytes: the standard library, and memory tasks.

  python -m experiments.train_lm

Settings: `configs/train_lm.py`. Writes the weights (`language_model.json` and
`.safetensors`), checkpoints, tables, curves for TensorBoard and a report with
bits per byte of held-out modules. SIGTERM saves and stops. However a run ended,
the same command with `--resume` goes on from its last checkpoint, bit for bit
as if it had not been stopped.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import text_data
from experiments.data.text_data import Document
from experiments.harness import pace, record
from experiments.harness.checkpoints import Checkpoints, Interrupt, Saved
from experiments.harness.progress import Progress
from experiments.harness.scalars import Scalars
from experiments.inverse_speed import cases
from experiments.train_lm import evaluation, report
from experiments.train_lm import training as lm_training
from experiments.train_lm.batches import KINDS, BatchSettings
from experiments.train_lm.training import OptimSettings, StepInfo, TrainState
from neumann_jax import (
  Execution,
  LanguageModel,
  ModelConfig,
  RuleOptions,
  shipped,
)


@dataclasses.dataclass(frozen=True)
class ExecutionSettings:
  """How the model is computed in training.

  Attributes:
    dtype: of activations and products; parameters are float32.
    chunk_size: C of the chunk-wise rule.
    inverse: name of its inverse, see `speed_cases.parse`.
    fused: whether u and w come from one kernel.
    implementation: of the rule.
    scan_layers: whether equal layers are one stack.
    remat: what the backward pass computes again: "none", "dots" or "full".
  """

  dtype: str = "bfloat16"
  chunk_size: int = 64
  inverse: str = "ladder float32"
  fused: bool = False
  implementation: str = "auto"
  scan_layers: bool = True
  remat: Literal["none", "dots", "full"] = "none"

  def __post_init__(self):
    """Refuses values out of range."""
    self.execution()

  def execution(self) -> Execution:
    """What the model takes."""
    case = cases.parse(self.inverse, self.chunk_size, self.implementation)
    return Execution(
      dtype=jnp.dtype(self.dtype),
      rule=RuleOptions(
        self.chunk_size, case.spec, self.fused, case.implementation
      ),
      scan_layers=self.scan_layers,
      remat=self.remat,
    )


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the training.

  Attributes:
    seed: of everything that is drawn.
    data: a folder of text files, or "" for the standard library.
    minutes: until the last step, data and compilation included; the number of
      steps follows from the speed. 0: `steps` decides.
    steps: how many.
    devices: over how many the rows are spread; 0 means all.
    save_every: steps between checkpoints.
    report_every: steps between lines of the table.
    task_batches: batches of every task that are answered in the end.
    held_out_bytes: of the held-out text, from its beginning; 0 means all.
    model: the architecture.
    execution: how it is computed.
    optim: how the parameters move.
    batch: what is in a batch.
  """

  seed: int
  data: str
  minutes: float
  steps: int
  devices: int
  save_every: int
  report_every: int
  task_batches: int
  held_out_bytes: int
  model: ModelConfig
  execution: ExecutionSettings
  optim: OptimSettings
  batch: BatchSettings

  def __post_init__(self):
    """Refuses values out of range."""
    pace.check(self.minutes, self.steps)
    if min(self.save_every, self.report_every, self.task_batches) < 1:
      raise ValueError(
        "save_every, report_every and task_batches must be positive; got "
        f"{self.save_every}, {self.report_every} and {self.task_batches}"
      )
    if self.model.vocab_size < text_data.VOCABULARY:
      raise ValueError(
        f"model.vocab_size must be at least {text_data.VOCABULARY}, got "
        f"{self.model.vocab_size}"
      )
    if not 0 <= self.devices <= jax.device_count():
      raise ValueError(
        f"devices must be in [0, {jax.device_count()}], got {self.devices}"
      )
    count, rows = len(self.mesh().devices), sum(self.batch.rows)
    if rows % count:
      raise ValueError(
        f"rows of a batch must be a whole multiple of the {count} devices, got "
        f"{rows}"
      )

  def mesh(self) -> Mesh:
    """The devices, along the axis "data"."""
    return Mesh(np.array(jax.devices()[: self.devices or None]), ("data",))

  def plan(self) -> lm_training.Plan:
    """What a step computes."""
    return lm_training.Plan(
      self.model,
      self.execution.execution(),
      self.optim,
      self.batch,
      self.mesh(),
    )


class Task(NamedTuple):
  """The settings and the text they name.

  Attributes:
    settings: of the training.
    training: what is learnt from.
    held_out: what is not.
  """

  settings: Settings
  training: Sequence[Document]
  held_out: Sequence[Document]


def prepare(settings: Settings) -> Task:
  """Reads the text.

  Raises:
    ValueError: if there is none.
  """
  return Task(
    settings,
    text_data.training_text(settings.data),
    text_data.held_out_text(settings.data),
  )


def train(task: Task, run: record.Run) -> None:
  """Trains, saves the weights, judges them, writes the report."""
  settings, scalars = task.settings, Scalars(run.folder)
  checkpoints = Checkpoints(run.folder)

  def keep(saved: Saved) -> None:
    save(saved.state, task, run)
    checkpoints.save(saved)

  with Interrupt() as interrupt:
    try:
      saved = _start(settings, checkpoints)
      saved = _loop(saved, task, run, scalars, keep, interrupt)
      keep(saved)
    finally:  # whatever ends it, what is being written gets written
      checkpoints.close()
      scalars.close()
  if interrupt.asked:
    raise SystemExit(
      f"stopped at step {int(saved.state.step)}; the same command goes on with "
      f"--resume --workdir={run.folder}"
    )
  _judge(saved.state, task, run)


def save(state: TrainState, task: Task, run: record.Run) -> None:
  """Writes the weights and their manifest into the run's folder."""
  settings, found = task.settings, run.environment
  batch = settings.batch
  about = {
    "command": found["command"],
    "revision": found["revision"],
    "device": found["devices"][0],
    "python": found["python"],
    "versions": found["versions"],
    "steps": int(state.step),
    "tokens": int(state.step) * sum(batch.rows) * batch.length,
    "seconds": round(run.seconds()),
    "settings": dataclasses.asdict(settings),
    "training_text": text_data.fingerprint(task.training),
    "held_out_text": text_data.fingerprint(task.held_out),
  }
  shipped.save_model(
    run.folder / "language_model.json", _model(state, settings), about
  )


def _model(state: TrainState, settings: Settings) -> LanguageModel:
  execution = settings.execution.execution()
  return lm_training.model_of(state.params, settings.model, execution)


def _start(settings: Settings, checkpoints: Checkpoints) -> Saved:
  """The last checkpoint, or the state before the first step; placed."""
  execution = settings.execution.execution()
  params = lm_training.initial_params(settings.model, execution, settings.seed)
  total = float(settings.steps) if settings.steps else np.inf
  saved = Saved(lm_training.init(params), total)
  if checkpoints.newest is not None:
    saved = checkpoints.restore(saved.state)
  everywhere = NamedSharding(settings.mesh(), P())
  return saved._replace(state=jax.device_put(saved.state, everywhere))


def _loop(
  saved: Saved,
  task: Task,
  run: record.Run,
  scalars: Scalars,
  keep: Callable[[Saved], None],
  interrupt: Interrupt,
) -> Saved:
  """Steps until the last one or the signal."""
  settings, plan = task.settings, task.settings.plan()
  state, total = saved
  number = int(state.step)
  everywhere = NamedSharding(plan.mesh, P())
  text = jax.device_put(text_data.stream(task.training), everywhere)
  key = jax.random.fold_in(jax.random.key(settings.seed), 2)
  watch = None  # step and second since which the speed is measured
  with Progress(0, label="train_lm") as tick:
    while number < total and not interrupt.asked:
      state, info = lm_training.step(
        state, text, key, jnp.float32(total), plan=plan
      )
      number += 1
      if number % settings.report_every == 0 or number == total:
        _report(run, scalars, settings, number, total, info)
        tick(f"step {number} of {total:.0f}, {float(info.bits[0]):.3f} bits")
        if np.isinf(total):
          watch = watch or (number, time.monotonic())
          total = pace.planned(
            watch, number, minutes=settings.minutes, spent=run.seconds()
          )
      if number % settings.save_every == 0:
        keep(Saved(state, total))
  return Saved(state, total)


def _report(
  run: record.Run,
  scalars: Scalars,
  settings: Settings,
  number: int,
  total: float,
  info: StepInfo,
) -> None:
  """A line of the table, unless a run gone on with has it already."""
  rows = run.rows("training")
  if rows and rows[-1]["step"] >= number:
    return
  batch = settings.batch
  values = {
    "loss": float(info.loss),
    "gradient": float(info.gradient),
    "rate": float(info.rate),
    **dict(zip(KINDS, map(float, info.bits))),
  }
  tokens = number * sum(batch.rows) * batch.length
  seconds = round(run.seconds(), 2)
  known = {"step": number, "of": total, "tokens": tokens, "seconds": seconds}
  run.write("training", known | values)
  scalars.write(number, values)


def _judge(state: TrainState, task: Task, run: record.Run) -> None:
  """Scores of held-out text and of the tasks, as tables and in the report."""
  settings, model = task.settings, _model(state, task.settings)
  length, rows = settings.batch.length, sum(settings.batch.rows)
  documents = _first(task.held_out, settings.held_out_bytes)
  text = evaluation.text_scores(model, documents, length=length, rows=rows)
  tasks = evaluation.task_scores(
    model,
    text_data.stream(task.held_out),
    length=length,
    rows=rows,
    batches=settings.task_batches,
    seed=settings.seed,
  )
  for table, scores in (("text", text), ("tasks", tasks)):
    if not run.rows(table):
      for score in scores:
        run.write(table, score._asdict())
  count = sum(x.size for x in state.params.values())
  tokens = int(state.step) * rows * length
  words = (
    f"{count / 1e6:.2f} million parameters, {int(state.step)} steps, "
    f"{tokens / 1e6:.0f} million tokens."
  )
  report.write(run, text, tasks, words=words, context=length)


def _first(documents: Sequence[Document], size: int) -> Sequence[Document]:
  """The first documents, `size` bytes in all; 0 means all of them."""
  if not size:
    return documents
  chosen, left = [], size
  for document in documents:
    if left > 0:
      chosen.append(document._replace(data=document.data[:left]))
      left -= len(document.data)
  return chosen
