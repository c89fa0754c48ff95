"""Weights quantised after training: one matrix, and a whole model."""

from neumann_jax.weight_quantization.matrix import PRESETS as PRESETS
from neumann_jax.weight_quantization.matrix import (
  WeightQuantSpec as WeightQuantSpec,
)
from neumann_jax.weight_quantization.matrix import preset as preset
from neumann_jax.weight_quantization.quantized_model import (
  quantize_weights as quantize_weights,
)

__all__ = ("PRESETS", "WeightQuantSpec", "preset", "quantize_weights")
