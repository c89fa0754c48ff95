"""Tunes a checkpoint on one's own texts and conversations."""
