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

  def moves(
    self,
    rate: jax.Array | float,
    decays: Callable[[str], bool] | None,
  ) -> optax.GradientTransformation:
    """As of `OptimSettings`; beside Muon all parameters decay or none."""
    others = super().moves(rate, decays)
    if not self.muon_rate:
      return others
    if decays is not None:
      raise ValueError("decays must be None with a muon_rate")
    faster = rate * (self.muon_rate / self.rate)
    return muon.muon(faster, others, is_matrix, decay=self.decay)


def is_matrix(name: str) -> bool:
  """Whether a parameter is a kernel between features."""
  parts = name.split(".")
  return parts[-1] == "kernel" and not set(parts) & set(OTHERS)
