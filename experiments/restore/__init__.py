"""A picture of one's own restored: the best image, samples, their spread."""
