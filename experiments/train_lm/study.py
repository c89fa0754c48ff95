"""Trains the hybrid model on bytes: the standard library, and memory tasks.

  python -m experiments.train_lm

Settings: `configs/train_lm.py`. Writes the weights (`language_model.json` and
`.safetensors`), checkpoints, tables, curves for TensorBoard and a report with
bits per byte of held-out modules. SIGTERM saves and stops. However a run ended,
the same command with `--resume` goes on from its last checkpoint as if it had
not been stopped: on CPUs bit for bit, on GPUs to rounding.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import text_data
from experiments.data.text_data import Document
from experiments.harness import record, writing
from experiments.harness.processes import hosts
from experiments.harness.training import loop, optimiser
from experiments.harness.training.optimiser import TrainState
from experiments.train_lm import evaluation, report, step
from experiments.train_lm.batches import KINDS
from experiments.train_lm.settings import Settings
from experiments.train_lm.step import StepBits
from neumann_jax import LanguageModel, shipped

NAME = "language_model"  # of the weights and their manifest


class Task(NamedTuple):
  """The settings and the text they name."""

  settings: Settings  # of the training
  training: Sequence[Document]  # what is learned from
  held_out: Sequence[Document]  # what is not


def prepare(settings: Settings) -> Task:
  """Reads the text."""
  return Task(
    settings,
    text_data.training_text(settings.data),
    text_data.held_out_text(settings.data),
  )


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the text."""
  return {
    "training text": str(text_data.fingerprint(task.training)["sha256"]),
    "held-out text": str(text_data.fingerprint(task.held_out)["sha256"]),
  }


def train(task: Task, run: record.Run) -> None:
  """Trains, saves the weights, evaluates them, writes the report."""
  settings = task.settings
  plan, seed = settings.plan(), settings.seed
  params = step.initial_params(settings.model, settings.execution, seed)
  state = optimiser.init(params, settings.optim)
  everywhere = NamedSharding(plan.mesh, P())
  text = hosts.place(text_data.stream(task.training), everywhere)
  key = jax.random.fold_in(jax.random.key(seed), 2)
  key_data = hosts.place(jax.random.key_data(key), everywhere)
  key = jax.random.wrap_key_data(key_data)

  def advance(
    state: TrainState, number: int, total: jax.Array
  ) -> tuple[TrainState, StepBits]:
    del number  # the state knows
    return step.step(state, text, key, total, plan=plan)

  state = loop.train(
    loop.start(state, settings, plan.mesh, run.folder),
    advance,
    loop.Loop(
      "train_lm",
      settings,
      row=lambda number, info: _row(settings, number, info),
      save=lambda state: save(state, task, run),
    ),
    run,
  )
  evaluate(state, task, run)


def _row(settings: Settings, number: int, info: StepBits) -> dict[str, float]:
  """A line of the table "training"."""
  return {
    "tokens": _tokens(settings, number),
    "loss": float(info.loss),
    "gradient": float(info.gradient),
    "rate": float(info.rate),
    **dict(zip(KINDS, map(float, info.bits))),
  }


def save(state: TrainState, task: Task, run: record.Run) -> None:
  """Writes the weights and their manifest into the run's folder."""
  settings, found = task.settings, run.environment
  about = {
    "command": found["command"],
    "revision": found["revision"],
    "device": found["devices"][0],
    "python": found["python"],
    "versions": found["versions"],
    "steps": int(state.step),
    "tokens": _tokens(settings, int(state.step)),
    "seconds": round(run.seconds()),
    "settings": _plain(dataclasses.asdict(settings)),
    "training_text": text_data.fingerprint(task.training),
    "held_out_text": text_data.fingerprint(task.held_out),
  }
  model, names = (
    _model(state, settings),
    (f"{NAME}.safetensors", f"{NAME}.json"),
  )
  if not hosts.is_first():
    return
  with writing.beside(run.folder, *names) as to:
    shipped.save_model(to / f"{NAME}.json", model, about)


def evaluate(state: TrainState, task: Task, run: record.Run) -> None:
  """Scores of held-out text and of the tasks, as tables and in the report."""
  settings, model = task.settings, _model(state, task.settings)
  length, rows = settings.batch.length, sum(settings.batch.rows)
  documents = text_data.first(task.held_out, settings.held_out_bytes)
  text = evaluation.text_scores(model, documents, length=length, rows=rows)
  tasks = evaluation.task_scores(
    model,
    text_data.stream(task.held_out),
    length=length,
    rows=rows,
    batches=settings.task_batches,
    seed=settings.seed,
  )
  for score in text:
    run.write_once("text", score, ("module",))
  for task_score in tasks:
    run.write_once("tasks", task_score, ("task",))
  count = sum(x.size for x in state.params.values())
  tokens = _tokens(settings, int(state.step))
  words = (
    f"{count / 1e6:.2f} million parameters, {int(state.step)} steps, "
    f"{tokens / 1e6:.0f} million tokens."
  )
  report.write(run, words=words, context=length)


def _model(state: TrainState, settings: Settings) -> LanguageModel:
  params = hosts.whole(state.params)
  return step.model_of(params, settings.model, settings.execution)


def _tokens(settings: Settings, steps: int) -> int:
  """Tokens read in so many steps."""
  return steps * sum(settings.batch.rows) * settings.batch.length


def _plain(settings: Any) -> Any:
  """Nested settings as JSON knows them: a dtype is its name."""
  if isinstance(settings, dict):
    return {name: _plain(value) for name, value in settings.items()}
  return settings.name if hasattr(settings, "itemsize") else settings
