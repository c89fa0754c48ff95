"""Gated DeltaNet's chunk inverse by matrix products alone.

Axis letters, one meaning each throughout the package:

  B   batch                     T   tokens of a sequence
  Hk  key heads                 Hv  value heads
  R   value heads a key head    N   chunks of a sequence
  C   tokens of a chunk         Dk, Dv  width of a key, of a value
  W   taps of the short convolution

The chunk matrix A_ij = beta_i <k_i, k_j> exp(G_i - G_j), i > j, has G the
cumulative log decay inside the chunk; T = (I + A)^-1.
"""

from neumann_jax import faulty_sums as _faulty_sums
from neumann_jax.chunk_inverse.api import inverse as inverse
from neumann_jax.chunk_inverse.bounds import certify as certify
from neumann_jax.chunk_inverse.bounds import envelope as envelope
from neumann_jax.chunk_inverse.integer import QuantSpec as QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec as InverseSpec
from neumann_jax.chunk_inverse.planner import Plan as Plan
from neumann_jax.chunk_inverse.planner import plan as plan
from neumann_jax.delta_rule.api import gated_delta_rule as gated_delta_rule
from neumann_jax.delta_rule.chunks.chunk_matrix import (
  ChunkMatrices as ChunkMatrices,
)
from neumann_jax.delta_rule.chunks.chunk_matrix import (
  chunk_matrices as chunk_matrices,
)
from neumann_jax.delta_rule.chunks.wy import (
  wy_representation as wy_representation,
)
from neumann_jax.delta_rule.options import RuleOptions as RuleOptions
from neumann_jax.delta_rule.recurrent import (
  gated_delta_recurrent as gated_delta_recurrent,
)
from neumann_jax.delta_rule.recurrent import (
  gated_delta_step as gated_delta_step,
)
from neumann_jax.execution import Execution as Execution
from neumann_jax.generation.api import generate as generate
from neumann_jax.generation.decoding import Generated as Generated
from neumann_jax.generation.sampling_spec import SamplingSpec as SamplingSpec
from neumann_jax.layers.caches.cache import Cache as Cache
from neumann_jax.layers.caches.cache import ModelCache as ModelCache
from neumann_jax.layers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from neumann_jax.model.language_model import LanguageModel as LanguageModel
from neumann_jax.model_config import ModelConfig as ModelConfig
from neumann_jax.yarn import Yarn as Yarn

_faulty_sums.avoid()

__version__ = "0.1.0"

__all__ = [
  "Cache",
  "ChunkMatrices",
  "Execution",
  "GatedDeltaNet",
  "Generated",
  "InverseSpec",
  "LanguageModel",
  "ModelCache",
  "ModelConfig",
  "Plan",
  "QuantSpec",
  "RuleOptions",
  "SamplingSpec",
  "Yarn",
  "certify",
  "chunk_matrices",
  "envelope",
  "gated_delta_recurrent",
  "gated_delta_rule",
  "gated_delta_step",
  "generate",
  "inverse",
  "plan",
  "wy_representation",
]
