"""Timing: what the studies of speed share."""
