"""Samplers on Levy processes, whose posteriors Gibbs sampling draws exactly."""
