"""Text from a model: prompts, sampling, and the compiled decoding loop."""

from neumann_jax.generation.api import generate as generate
from neumann_jax.generation.api import stream as stream

__all__ = (
  "generate",
  "stream",
)
