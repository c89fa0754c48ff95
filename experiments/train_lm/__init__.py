"""Trains the hybrid model on bytes: the standard library, and memory tasks."""
