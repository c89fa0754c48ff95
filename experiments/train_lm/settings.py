"""What `train_lm` trains, on what, for how long."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.data import text_data
from experiments.harness.settings import setting
from experiments.harness.training.loop import LoopSettings
from experiments.harness.training.optimiser import OptimSettings
from experiments.train_lm.batches import BatchSettings
from experiments.train_lm.step import Plan
from neumann_jax import Execution, ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(LoopSettings):
  """Settings of the training, besides those of its loop."""

  seed: int  # of everything that is drawn
  data: str  # a folder of text files, or "" for the standard library
  devices: int  # over how many the rows are spread; 0 means all
  # batches of every task that are answered in the end
  task_batches: int = setting(at_least=1)
  # of the held-out text, from its beginning; 0 means all
  held_out_bytes: int = setting(at_least=0)
  model: ModelConfig  # the architecture
  execution: Execution  # how it is computed
  optim: OptimSettings  # how the parameters move
  batch: BatchSettings  # what is in a batch

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.model.vocab_size < text_data.VOCABULARY:
      raise ValueError(
        f"model.vocab_size must be at least {text_data.VOCABULARY}, got "
        f"{self.model.vocab_size}"
      )
    if not 0 <= self.devices <= jax.device_count():
      raise ValueError(
        f"devices must be in [0, {jax.device_count()}], got {self.devices}"
      )
    if jax.process_count() > 1 and self.devices not in (0, jax.device_count()):
      raise ValueError(
        "devices must be 0, all of them, where there are several processes, "
        f"got {self.devices}"
      )
    count = len(self.plan().mesh.devices)
    if sum(self.batch.rows) % count:
      raise ValueError(
        f"rows of a batch must be a whole multiple of the {count} devices, got "
        f"{sum(self.batch.rows)}"
      )

  def plan(self) -> Plan:
    """What a step computes, its rows along the mesh axis "data"."""
    devices = np.array(jax.devices()[: self.devices or None])
    mesh = Mesh(devices, ("data",))
    return Plan(self.model, self.execution, self.optim, self.batch, mesh)
