"""Gated DeltaNet chunk inverse by matrix products alone."""

__version__ = "0.1.0"
