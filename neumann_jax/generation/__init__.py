"""Text from a model: prompts, sampling, and the compiled decoding loop."""

from neumann_jax.generation.api import generate as generate
from neumann_jax.generation.api import stream as stream
from neumann_jax.generation.decoding import Generated as Generated
from neumann_jax.generation.sampling import SamplingSpec as SamplingSpec

__all__ = ("Generated", "SamplingSpec", "generate", "stream")
