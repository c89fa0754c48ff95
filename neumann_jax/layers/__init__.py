"""The layers of Qwen3-Next and Qwen3.5 as flax.nnx modules, with caches."""

from neumann_jax.layers.gated_delta_net import GatedDeltaNet as GatedDeltaNet

__all__ = ("GatedDeltaNet",)
