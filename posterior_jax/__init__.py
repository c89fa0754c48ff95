"""Diffusion posterior sampling by noise-frequency continuation."""
