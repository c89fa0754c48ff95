"""Kernels of the layers: ours in Pallas, and those that come with jax."""
