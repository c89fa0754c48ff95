"""Text from a language model under a chosen chunk inverse.

Command: python -m experiments.generate --config.checkpoint=DIR
  --config.prompt="Once upon a time" --config.spec="ladder bfloat16"
  --config=configs/generate.py:debug takes a small model of random weights, on
  a CPU, for the tests only.
Time: that of reading the checkpoint, a minute or two of compilation, and of
the text; `:debug` under a minute on 2 CPU cores.
Expected: the prompt and its continuation, as it is written; then tokens a
second of prefill and of decoding and what they were measured on; the same in
generation.jsonl. The same seed writes the same text.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and needs no files."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "checkpoint": "random" if debug else "",
      "prompt": "def prefill(" if debug else "The capital of France is",
      "chat": False,
      "max_new_tokens": 12 if debug else 256,
      "temperature": 0.7,
      "top_k": 20,
      "top_p": 0.8,
      "min_p": 0.0,
      "repetition_penalty": 1.0,
      "presence_penalty": 0.0,
      "seed": 0,
      "spec": "ladder float32",
      "chunk_size": 16 if debug else 64,
      "implementation": "auto",
      "dtype": "float32" if debug else "bfloat16",
      "prefill_chunk": 5 if debug else 0,
      "scan_layers": False,
      "every": 4 if debug else 8,
    }
  )
