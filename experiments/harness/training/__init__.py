"""Training: the loop, the optimiser, checkpoints and curves."""
