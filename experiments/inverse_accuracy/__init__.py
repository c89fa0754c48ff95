"""How wrong each chunk inverse is, over families of keys."""
