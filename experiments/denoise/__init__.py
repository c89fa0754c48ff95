"""How well the photo prior denoises photographs that it never saw."""
