"""Training under each gradient of the chunk inverse: implicit or truncated.

  python -m experiments.gradient_study

Settings: `configs/gradient_study.py`. Small models learn the same batches from
the same start, a few seeds at once; only the inverse and its gradient differ.
`--resume` goes on after the cases that `--workdir` has.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from experiments.data import text_data
from experiments.gradient_study import report
from experiments.harness import record
from experiments.harness.progress import Progress
from experiments.harness.settings import Checked, setting
from experiments.harness.training import optimiser
from experiments.harness.training.optimiser import OptimSettings, TrainState
from experiments.train_lm import step
from experiments.train_lm.batches import BatchSettings
from experiments.train_lm.step import Plan
from neumann_jax import Execution, InverseSpec, ModelConfig, RuleOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the study."""

  data: str  # a folder of text files, or "" for the standard library
  seeds: int = setting(at_least=1)  # how many, from 0
  steps: int = setting(at_least=1)  # of every training
  # steps whose mean loss is a row of the table; divides steps
  block: int = setting(at_least=1)
  # names "METHOD FORMAT GRADIENT", the first is what the others are compared
  # with; see `InverseSpec.parse`, GRADIENT is implicit or truncated
  cases: tuple[str, ...] = setting(some=True, distinct=True)
  chunk_size: int  # C
  # of activations and products with weights
  dtype: str = setting(among=("float32", "bfloat16", "float16"))
  model: ModelConfig  # the architecture
  optim: OptimSettings  # how the parameters move
  batch: BatchSettings  # what is in a batch

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.steps % self.block:
      raise ValueError(
        f"steps must be a multiple of block = {self.block}, got {self.steps}"
      )
    for name in self.cases:
      self.plan(name)

  def plan(self, name: str) -> Plan:
    """What a step of a case computes."""
    inverse, _, gradient = name.rpartition(" ")
    rule = RuleOptions(
      self.chunk_size,
      InverseSpec.parse(inverse),
      implementation="xla",
      gradient=cast(Any, gradient),
    )
    execution = Execution(
      dtype=jnp.dtype(self.dtype),
      rule=rule,
      scan_layers=self.model.period < self.model.num_hidden_layers,
    )
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return Plan(self.model, execution, self.optim, self.batch, mesh)


class Task(NamedTuple):
  """The settings and the text they name."""

  settings: Settings  # of the study
  text: np.ndarray  # [n] tokens
  sha256: str  # of the text's documents


def prepare(settings: Settings) -> Task:
  """Reads the training text; raises ValueError if there is none."""
  documents = text_data.training_text(settings.data)
  sha256 = text_data.fingerprint(documents)["sha256"]
  return Task(settings, text_data.stream(documents), str(sha256))


def inputs(task: Task) -> dict[str, str]:
  """SHA-256 of the text."""
  return {"training text": task.sha256}


def study(task: Task, run: record.Run) -> None:
  """Trains every case that is missing, writes tables and the report."""
  settings, text = task.settings, jnp.asarray(task.text)
  done = {row["case"] for row in run.rows("cases")}
  missing = [name for name in settings.cases if name not in done]
  with Progress(len(missing), label="gradient_study") as tick:
    for name in missing:
      tick(name)
      begun = run.seconds()
      losses = train(settings, name, text)  # [seeds, steps]
      _write(run, settings, name, losses, run.seconds() - begun)
  report.write(run, settings.cases, settings.seeds, settings.steps)


def train(settings: Settings, name: str, text: jax.Array) -> np.ndarray:
  """Losses of a case in nats, [seeds, steps]; NaN where one was not finite."""
  plan = settings.plan(name)
  starts = [
    optimiser.init(
      step.initial_params(settings.model, plan.execution, seed), settings.optim
    )
    for seed in range(settings.seeds)
  ]
  states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
  keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
  total, losses = jnp.float32(settings.steps), []
  for _ in range(settings.steps // settings.block):
    states, found = _advance(
      states, text, keys, total, plan=plan, steps=settings.block
    )
    losses.append(np.asarray(found))
  return np.concatenate(losses).T


@functools.partial(
  jax.jit, static_argnames=("plan", "steps"), donate_argnames="states"
)
def _advance(
  states: TrainState,
  text: jax.Array,
  keys: chex.PRNGKey,
  total: jax.Array,
  *,
  plan: Plan,
  steps: int,
) -> tuple[TrainState, jax.Array]:
  """So many steps of every seed, and their losses [steps, seeds]."""
  every = jax.vmap(functools.partial(step.step, plan=plan), (0, None, 0, None))

  def body(states: TrainState, _: None) -> tuple[TrainState, jax.Array]:
    states, info = every(states, text, keys, total)
    good = jnp.isfinite(info.gradient)
    return states, jnp.where(good, info.loss, jnp.nan)

  return lax.scan(body, states, length=steps)


def _write(
  run: record.Run,
  settings: Settings,
  name: str,
  losses: np.ndarray,
  seconds: float,
) -> None:
  """Rows of a case: means of blocks, and last what the seeds end with."""
  blocks = losses.reshape(settings.seeds, -1, settings.block).mean(-1)
  for (seed, i), loss in np.ndenumerate(blocks):
    at = {"case": name, "seed": seed, "step": (i + 1) * settings.block}
    run.write_once("losses", at | {"loss": loss}, tuple(at))
  last = losses[:, -max(settings.steps // 10, 1) :].mean(1)
  ends = {f"seed_{seed}": loss for seed, loss in enumerate(last)}
  bad = int(np.isnan(losses).sum())
  about = {"bad_steps": bad, "seconds": round(seconds, 1)}
  run.write("cases", {"case": name} | ends | about)
