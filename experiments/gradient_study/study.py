"""Training under each gradient of the chunk inverse: implicit or truncated.

  python -m experiments.gradient_study

Settings: `configs/gradient_study.py`. Small models learn the same batches from
the same start, a few seeds at once; only the inverse and its gradient differ.
`--resume` goes on after the cases that `--workdir` has.
"""

import dataclasses
import functools
from typing import NamedTuple, cast

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
from experiments.inverse_speed import cases as speed_cases
from experiments.train_lm import training
from experiments.train_lm.batches import BatchSettings
from experiments.train_lm.training import OptimSettings, Plan, TrainState
from neumann_jax import Execution, ModelConfig, RuleOptions
from neumann_jax.chunk_inverse.gradient import Gradient, check_gradient


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the study.

  Attributes:
    data: a folder of text files, or "" for the standard library.
    seeds: how many, from 0.
    steps: of every training.
    block: steps whose mean loss is a row of the table; divides steps.
    cases: names "METHOD FORMAT GRADIENT", the first is what the others are
      compared with; see `speed_cases.parse`, GRADIENT is implicit or truncated.
    chunk_size: C.
    dtype: of activations and products with weights.
    model: the architecture.
    optim: how the parameters move.
    batch: what is in a batch.
  """

  data: str
  seeds: int
  steps: int
  block: int
  cases: tuple[str, ...]
  chunk_size: int
  dtype: str
  model: ModelConfig
  optim: OptimSettings
  batch: BatchSettings

  def __post_init__(self):
    """Refuses values out of range."""
    if min(self.seeds, self.steps, self.block) < 1 or self.steps % self.block:
      raise ValueError(
        "seeds, steps and block must be positive and block divide steps; got "
        f"{self.seeds}, {self.steps} and {self.block}"
      )
    if isinstance(self.cases, str) or len(set(self.cases)) < len(self.cases):
      raise ValueError(
        f"cases must be a tuple of different names, got {self.cases}"
      )
    if not self.cases:
      raise ValueError("cases must name at least one")
    for name in self.cases:
      self.plan(name)

  def plan(self, name: str) -> Plan:
    """What a step of a case computes."""
    inverse, _, gradient = name.rpartition(" ")
    check_gradient(gradient)
    case = speed_cases.parse(inverse, self.chunk_size, "xla")
    execution = Execution(
      dtype=jnp.dtype(self.dtype),
      rule=RuleOptions(
        self.chunk_size,
        case.spec,
        implementation="xla",
        gradient=cast(Gradient, gradient),
      ),
      scan_layers=self.model.period < self.model.num_hidden_layers,
    )
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    return Plan(self.model, execution, self.optim, self.batch, mesh)


class Task(NamedTuple):
  """The settings and the text they name.

  Attributes:
    settings: of the study.
    text: [n] tokens.
  """

  settings: Settings
  text: np.ndarray


def prepare(settings: Settings) -> Task:
  """Reads the training text; raises ValueError if there is none."""
  documents = text_data.training_text(settings.data)
  return Task(settings, text_data.stream(documents))


def study(task: Task, run: record.Run) -> None:
  """Trains every case that is missing, writes tables and `report.html`."""
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
    training.init(training.initial_params(settings.model, plan.execution, seed))
    for seed in range(settings.seeds)
  ]
  states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
  keys = jax.vmap(jax.random.key)(jnp.arange(settings.seeds))
  losses = []
  for _ in range(settings.steps // settings.block):
    states, found = _advance(
      states,
      text,
      keys,
      jnp.float32(settings.steps),
      plan=plan,
      steps=settings.block,
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
  step = functools.partial(training.step, plan=plan)

  def body(states: TrainState, _: None) -> tuple[TrainState, jax.Array]:
    states, info = jax.vmap(step, (0, None, 0, None))(states, text, keys, total)
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
  known = {(row["case"], row["seed"]) for row in run.rows("losses")}
  for seed, means in enumerate(blocks):
    if (name, seed) not in known:
      for i, loss in enumerate(means, 1):
        run.write(
          "losses",
          {
            "case": name,
            "seed": seed,
            "step": i * settings.block,
            "loss": loss,
          },
        )
  last = losses[:, -max(settings.steps // 10, 1) :].mean(1)
  run.write(
    "cases",
    {
      "case": name,
      **{f"seed_{seed}": loss for seed, loss in enumerate(last)},
      "bad_steps": int(np.isnan(losses).sum()),
      "seconds": round(seconds, 1),
    },
  )
