"""How the parameters of a photo prior move: AdamW, kernels maybe by Muon."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from experiments.harness.settings import setting
from experiments.harness.training import muon
from experiments.harness.training.optimiser import OptimSettings

# Those from pixels, to pixels and of the noise level keep AdamW.
OTHERS = ("enter", "leave", "embed", "modulation")


@dataclasses.dataclass(frozen=True)
class PriorOptim(OptimSettings):
  """AdamW, and Muon for the kernels between features where it has a rate."""

  # greatest learning rate of Muon, which falls as that of AdamW; 0: AdamW
  # moves everything
  muon_rate: float = setting(0.0, at_least=0)

  def rule(
    self,
    rate: jax.Array | float,
    decays: Callable[[str], bool] | None = None,
  ) -> optax.GradientTransformation:
    """As of `OptimSettings`; beside Muon all parameters decay or none."""
    if not self.muon_rate:
      return super().rule(rate, decays)
    if decays is not None:
      raise ValueError("decays must be None with a muon_rate")
    others = optax.adamw(rate, b1=0.9, b2=self.b2, weight_decay=self.decay)
    faster = rate * (self.muon_rate / self.rate)
    return optax.chain(
      optax.clip_by_global_norm(self.clip),
      muon.muon(faster, others, is_matrix, decay=self.decay),
    )


def is_matrix(name: str) -> bool:
  """Whether a parameter is a kernel between features."""
  parts = name.split(".")
  return parts[-1] == "kernel" and not set(parts) & set(OTHERS)
