"""Tunes a checkpoint on one's own texts and conversations.

  python -m experiments.finetune --config.checkpoint=DIR --config.data=FILE

Settings: `configs/finetune.py`. Writes `adapter/`, a folder of PEFT, or
`model/`, the checkpoint with its text weights tuned; checkpoints of the run,
tables, curves and a report. SIGTERM saves and stops. However a run ended, the
same command with `--resume` goes on from its last checkpoint as if it had not
been stopped: on CPUs bit for bit, on GPUs to rounding.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey

from experiments.data import packed_rows
from experiments.data.packed_rows import Rows
from experiments.finetune import documents, report, step
from experiments.finetune.settings import Settings
from experiments.finetune.step import Plan, StepLosses
from experiments.harness import record, writing
from experiments.harness.processes import hosts
from experiments.harness.reporting.report import shown
from experiments.harness.subjects import text_model
from experiments.harness.training import loop, optimiser
from experiments.harness.training.optimiser import Params, TrainState
from neumann_jax import (
  LanguageModel,
  checkpoint,
  generation,
  sharding,
  tuning,
)
from neumann_jax.checkpoint import drop_in

ADAPTER, MODEL = "adapter", "model"  # what a run leaves


class Task(NamedTuple):
  """Everything that was read."""

  settings: Settings  # of the tuning
  source: text_model.Source  # of the weights
  model: LanguageModel  # on the mesh, with the adapters that are tuned
  rows: Rows  # to learn from
  held_out: Rows | None  # to be evaluated on
  words: str  # what was read


def prepare(settings: Settings) -> Task:
  """Reads the texts, cuts them into rows, and reads the weights."""
  source = text_model.find(settings.checkpoint)
  if source.folder is not None and not settings.data:
    raise ValueError("data must name a file: give --config.data=FILE")
  documents.files(settings.data)
  # Layers that do not repeat, or a target that no layer has, are refused now.
  step.abstract_model(_plan(settings, source, settings.lora))
  tokenizer = generation.load_tokenizer(source.folder, source.config.vocab_size)
  read = functools.partial(
    documents.read,
    tokenizer=tokenizer,
    length=settings.length,
    turns=settings.turns,
  )
  pack = functools.partial(
    packed_rows.pack, length=settings.length, packed=settings.packed
  )
  found = read(settings.data)
  rows = pack(found.documents)
  words, held_out = _words(found, rows, settings), None
  if settings.held_out:
    found = read(settings.held_out)
    held_out = pack(found.documents)
    words += f"; held out are {_counted(found, settings.length)}"
  if source.folder is not None and (
    settings.tuning == "full" or settings.merged
  ):
    drop_in.check(source.config, source.folder)  # what is written in the end
  # Last, as it takes longest: whatever else is refused comes first.
  model = _load(settings, source)
  return Task(settings, source, model, rows, held_out, words)


def _words(found: documents.Read, rows: Rows, settings: Settings) -> str:
  count = len(rows.tokens)
  return (
    f"{_counted(found, settings.length)}, {int(rows.wanted.sum())} tokens to "
    f"learn in {count} rows of {settings.length} "
    f"({rows.real.mean():.1%} full): {settings.rows} a step, "
    f"a pass in {count / settings.rows:.1f} steps"
  )


def _counted(found: documents.Read, length: int) -> str:
  cut = f" ({found.cut} cut at {length} tokens)" if found.cut else ""
  dropped = f", {found.dropped} documents of which have nothing to learn"
  return (
    f"{found.texts} texts and {found.chats} conversations{cut}"
    f"{dropped if found.dropped else ''}"
  )


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the texts, of the checkpoint's files and of the adapters."""
  settings = task.settings
  found = writing.digests("data", documents.files(settings.data))
  if settings.held_out:
    files = documents.files(settings.held_out)
    found |= writing.digests("held out", files)
  if settings.adapters:
    found |= writing.digests("adapters", [settings.adapters])
  return found | writing.digests("checkpoint", text_model.files(task.source))


def finetune(task: Task, run: record.Run) -> None:
  """Tunes, writes what was tuned, evaluates it, writes the report."""
  settings = task.settings
  print(task.words)
  mesh = settings.mesh.mesh()
  found = tuning.adapters(task.model)
  plan = _plan(settings, task.source, found[0].spec if found else None)
  params = step.named(task.model)
  frozen = {k: x for k, x in params.items() if not step.is_tuned(k, plan)}
  tuned = {k: x for k, x in params.items() if step.is_tuned(k, plan)}
  state = _initial(tuned, settings.optim, mesh)
  where = jax.tree.map(lambda x: x.sharding, state)
  _evaluate("before", params, task, plan, mesh, run)
  advance = step.make(plan, state)

  def next_state(
    state: TrainState, number: int, total: jax.Array
  ) -> tuple[TrainState, StepLosses]:
    places = packed_rows.chosen(
      number,
      batch=settings.rows,
      rows=len(task.rows.tokens),
      seed=settings.seed,
    )
    rows = step.placed(task.rows.take(places), mesh)
    return advance(state, frozen, rows, total)

  state = loop.train(
    loop.start(state, settings, where, run.folder),
    next_state,
    loop.Loop("finetune", settings, row=_row, save=lambda state: None),
    run,
  )
  tuned = state.params | frozen
  _save(tuned, plan, task, run)
  _evaluate("after", tuned, task, plan, mesh, run)
  report.write(run, words=task.words, tuned=_count(state.params))


def _load(settings: Settings, source: text_model.Source) -> LanguageModel:
  """The model on the mesh, with the adapters that are tuned."""
  mesh = settings.mesh.mesh()
  where = functools.partial(sharding.param_shardings, mesh=mesh)
  if source.folder is None:
    model = text_model.load(source, settings.execution, settings.seed)
    model = sharding.place(model, mesh)
  else:
    model = checkpoint.load(source.folder, settings.execution, shardings=where)
  if settings.tuning == "full":
    return model
  if settings.adapters:
    model = tuning.load_adapters(model, settings.adapters)
  else:
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(settings.seed), 1))
    model = tuning.add_adapters(model, settings.lora, rngs=rngs)
  return sharding.place(model, mesh)


def _plan(
  settings: Settings,
  source: text_model.Source,
  lora: tuning.LoraSpec | None,
) -> Plan:
  return Plan(
    source.config,
    settings.execution,
    lora if settings.tuning == "lora" else None,
    settings.optim,
    settings.balance,
    settings.vocab_block,
  )


def _initial(
  params: Params, optim: optimiser.OptimSettings, mesh: Mesh
) -> TrainState:
  """The state before the first step; moments lie where their parameters do."""

  def rest(params: Params) -> TrainState:
    return optimiser.init(params, optim)._replace(params={})

  def place(path: tuple, shape: jax.ShapeDtypeStruct) -> Sharding:
    del shape
    names = [key.key for key in path if isinstance(key, DictKey)]
    return params[names[-1]].sharding if names else NamedSharding(mesh, P())

  shapes = jax.eval_shape(rest, params)
  where = jax.tree.map_with_path(place, shapes)
  return jax.jit(rest, out_shardings=where)(params)._replace(params=params)


def _row(number: int, info: StepLosses) -> dict[str, float]:
  """A line of the table "training"."""
  del number
  return {name: float(value) for name, value in info._asdict().items()}


def _evaluate(
  when: str,
  params: Params,
  task: Task,
  plan: Plan,
  mesh: Mesh,
  run: record.Run,
) -> None:
  """A line of the table "held_out", unless it is there."""
  known = [row["when"] for row in run.rows("held_out")]
  if task.held_out is None or when in known:
    return
  mean, count = step.mean_loss(
    params, task.held_out, plan, mesh, task.settings.rows
  )
  row = {"when": when, "tokens": count, "loss": mean}
  run.write("held_out", row | {"perplexity": float(np.exp(mean))})


def _save(params: Params, plan: Plan, task: Task, run: record.Run) -> None:
  """Writes the adapters, or the tuned checkpoint, into the run's folder."""
  if task.settings.tuning == "lora" and not task.settings.merged:
    # The rest of the weights need not come together on one host.
    params = params | hosts.whole(
      {k: x for k, x in params.items() if step.is_tuned(k, plan)}
    )
  else:
    params = hosts.whole(params)
  if not hosts.is_first():
    return
  model = step.model_of(params, plan)
  folder = task.source.folder
  if task.settings.tuning == "lora":
    with writing.in_place_of(run.folder / ADAPTER) as path:
      tuning.save_adapters(
        model,
        path,
        base=task.settings.checkpoint,
        text_only=task.settings.text_only,
      )
    print(f"adapters: {shown(run.folder / ADAPTER)}")
    if not task.settings.merged:
      return
    model = tuning.merge_adapters(model)
  with writing.in_place_of(run.folder / MODEL) as path:
    checkpoint.save(model, path, like=folder)
  print(f"tuned model: {shown(run.folder / MODEL)}")


def _count(params: Params) -> int:
  return sum(x.size for x in params.values())
