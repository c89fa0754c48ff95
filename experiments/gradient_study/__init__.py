"""Training under each gradient of the chunk inverse: implicit or truncated."""
