"""What tuning a checkpoint needs: adapters, their files, losses."""

from neumann_jax.tuning.balance import balance_loss as balance_loss
from neumann_jax.tuning.cross_entropy import cross_entropy as cross_entropy
from neumann_jax.tuning.cross_entropy import token_losses as token_losses
from neumann_jax.tuning.lora import LoraSpec as LoraSpec
from neumann_jax.tuning.lora import adapters as adapters
from neumann_jax.tuning.lora import add_adapters as add_adapters
from neumann_jax.tuning.lora import merge_adapters as merge_adapters
from neumann_jax.tuning.peft_files import load_adapters as load_adapters
from neumann_jax.tuning.peft_files import save_adapters as save_adapters

__all__ = (
  "LoraSpec",
  "adapters",
  "add_adapters",
  "balance_loss",
  "cross_entropy",
  "load_adapters",
  "merge_adapters",
  "save_adapters",
  "token_losses",
)
