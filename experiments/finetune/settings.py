"""What `finetune` tunes, on what, for how long."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.harness.settings import Checked, setting
from experiments.harness.training.loop import LoopSettings
from experiments.harness.training.optimiser import OptimSettings
from neumann_jax import Execution, sharding
from neumann_jax.tuning import LoraSpec

TUNINGS = ("lora", "full")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Checked):
  """Over which devices rows and parameters are spread."""

  data: int = setting(at_least=0)  # rows; 0: what the others leave
  fsdp: int = setting(at_least=1)  # rows, and parameters
  tensor: int = setting(at_least=1)  # heads and widths

  def mesh(self) -> Mesh:
    """The mesh; ValueError where there are too few devices."""
    data = self.data or jax.device_count() // (self.fsdp * self.tensor) or 1
    return sharding.make_mesh(data=data, fsdp=self.fsdp, tensor=self.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(LoopSettings):
  """Settings of the tuning, besides those of its loop."""

  # a Hugging Face folder, or "random" for a small model of random weights:
  # for the tests
  checkpoint: str
  # a .jsonl or .txt file or a folder of such, see `documents`; "" means sources
  # of the Python standard library, for the tests
  data: str
  held_out: str  # likewise, or "" for none: its loss is taken before and after
  seed: int  # of the order of the rows, of fresh adapters, of random weights
  length: int = setting(at_least=2)  # T, tokens of a row
  rows: int = setting(at_least=1)  # of a batch
  packed: bool  # whether a row holds as many documents as fit, or one
  # answers of a conversation that are learned
  turns: str = setting(among=("all", "last"))
  tuning: str = setting(among=TUNINGS)  # adapters, or all parameters
  lora: LoraSpec  # of fresh adapters
  adapters: str  # a PEFT folder whose adapters are tuned on; "" for fresh ones
  merged: bool  # whether adapters are written into a copy of the checkpoint too
  # whether adapters have the names of AutoModelForCausalLM where the
  # checkpoint's own class is a vision-language one
  text_only: bool
  # weight of the router's balance loss; 0 for none
  balance: float = setting(at_least=0)
  vocab_block: int = setting(
    at_least=1
  )  # words whose logits are held at a time
  mesh: MeshSettings
  execution: Execution  # how the model is computed
  optim: OptimSettings  # how the parameters move

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.tuning == "full" and self.execution.param_dtype != jnp.float32:
      raise ValueError(
        "execution.param_dtype must be float32 where all parameters are tuned, "
        f"as their updates are small; got {self.execution.param_dtype}"
      )
    if self.tuning == "full" and (self.adapters or self.merged):
      raise ValueError("adapters and merged need tuning='lora', got 'full'")
    if self.tuning == "full" and self.text_only:
      raise ValueError("text_only needs tuning='lora', got 'full'")
    shape = self.mesh.mesh().shape
    if jax.process_count() > 1 and math.prod(shape.values()) < (
      jax.device_count()
    ):
      raise ValueError(
        f"mesh must have all {jax.device_count()} devices where there are "
        f"several processes, got {math.prod(shape.values())}"
      )
    if self.rows % (shape["data"] * shape["fsdp"]):
      raise ValueError(
        f"rows must be a whole multiple of mesh.data * mesh.fsdp = "
        f"{shape['data'] * shape['fsdp']}, got {self.rows}"
      )
