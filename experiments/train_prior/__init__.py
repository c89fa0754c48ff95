"""Trains the photo prior: EDM's loss on photographs and dead leaves."""
