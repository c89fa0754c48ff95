"""Errors of the chunk inverse: README's table, on a CPU.

Command: python -m experiments.inverse_accuracy
  --config=configs/inverse_accuracy.py:debug shrinks it for the tests.
Time: 2 minutes of a CPU core, most of it compilation; `:debug` 50 s.
Expected: report.html, whose path is printed last. On every family of keys the
ladder stays within 2e-6 of the float64 inverse in float32 and near 1e-2 in
bfloat16, while the paper's banded form fails on low-rank and periodic keys; no
entry's error exceeds its certificate.
"""

import ml_collections

from configs import is_debug

FORMATS = ("float32", "bfloat16", "float16", "INT16", "INT8")


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "draws": 1 if debug else 5,
      "chunk_size": 64,
      "tokens": 64 if debug else 256,
      "paper_chunks": (32, 64) if debug else (32, 64, 128),
      # Compiling every method in every format is most of the time.
      "formats": ("float32", "INT8") if debug else FORMATS,
    }
  )
