"""Perplexity and divergence of a language model under each chunk inverse.

Command: python -m experiments.evaluate_lm --config.checkpoint=DIR
  --config.text=FILE --workdir=runs/NAME
  --config=configs/evaluate_lm.py:debug takes a small model of random weights
  and sources of the standard library, on a CPU, for the tests only.
Time: of the layers' prefill of the text, once a case, twice for its first
batch, and minutes of compilation; `:debug` under 2 minutes on 2 CPU cores.
Expected: report.html, whose path is printed last, after a table. The float32
ladder keeps the exact inverse's perplexity to four digits; no certificate is
exceeded by any error of any layer.
"""

import ml_collections

from configs import is_debug

SPECS = (
  "ladder float32",
  "ladder bfloat16",
  "ladder float16",
  "ladder bfloat16 refine",
  "ladder int16-dynamic",
  "ladder int8-dynamic",
  "ladder int8-envelope",
  "ladder int8-dynamic refine",
  "banded float16",
  "banded bfloat16",
  "banded int16-dynamic",
)


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and needs no files."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "checkpoint": "random" if debug else "",
      "text": "",
      "max_tokens": 300 if debug else 65536,
      "window": 64 if debug else 2048,
      "batch": 2 if debug else 1,
      "specs": (SPECS[1], SPECS[8]) if debug else SPECS,
      "chunk_sizes": (16, 32) if debug else (64,),
      "weights": ("none", "W4A16") if debug else ("none",),
      "inverse_windows": 1,
      "tolerance": 0.05,
      "implementation": "auto",
      "dtype": "float32" if debug else "bfloat16",
      "seed": 0,
    }
  )
