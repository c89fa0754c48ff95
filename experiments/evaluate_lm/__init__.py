"""Perplexity of a Qwen3.5 or Qwen3-Next checkpoint under each chunk inverse."""
