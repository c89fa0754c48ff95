"""Weights quantised after training: one matrix, and a whole model."""
