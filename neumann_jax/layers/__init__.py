"""The layers of Qwen3-Next and Qwen3.5 as flax.nnx modules, with caches.

A token mixer provides what `mixer.Mixer` lists; `model.decoder.MIXERS` chooses
one for each layer. What layers keep from call to call is in the room `caches`,
the convolution in front of the rule in `convolution`; `one_token` is a step of
decoding in parts, `one_kernel` a whole layer's. `kernels` holds what a GPU or a
TPU computes in one launch.
"""

from neumann_jax.layers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from neumann_jax.layers.gates import Gates as Gates
from neumann_jax.layers.mixer import Mixer as Mixer

__all__ = ("GatedDeltaNet", "Gates", "Mixer")
