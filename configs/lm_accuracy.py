"""The accuracy study of arXiv 2606.06034 on the shipped language model.

Command: python -m experiments.lm_accuracy --workdir=runs/lm_accuracy
  --config=configs/lm_accuracy.py:debug reads little text at small chunk sizes.
Time: under 15 minutes on 2 CPU cores; `:debug` under 1 minute.
Expected: report.html, whose path is printed last, after a table. At C = 64 and
128 bits per byte of text move by at most 1e-3 under the ladder in bfloat16 and
INT16, 1e-2 in INT8 and 2e-3 in refined INT8; every plan keeps its tolerance on
every matrix.
"""

import ml_collections

from configs import is_debug

SPECS = (
  "ladder bfloat16",
  "ladder bfloat16 refine",
  "ladder int16-dynamic",
  "ladder int8-dynamic",
  "ladder int8-dynamic refine",
  "banded float16",
  "banded int16-dynamic",
  "banded int8-dynamic",
)
FORMATS = (
  "float64",
  "float32",
  "float16",
  "bfloat16",
  "INT16",
  "INT8",
  "INT4",
)
PLANNED = ("float32", "bfloat16", "INT16", "INT8")


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "model": "shipped",
      "data": "",
      "window": 128 if debug else 512,
      "natural_rows": 2 if debug else 16,
      "adversarial_rows": 1 if debug else 4,
      "answers": 20 if debug else 500,
      "specs": (SPECS[0], SPECS[5]) if debug else SPECS,
      "chunk_sizes": (64,) if debug else (64, 128),
      "weights": ("W4A16",) if debug else ("W4A16", "W8A8"),
      "quantised_chunk_sizes": (64,),
      "grid_chunk_sizes": (64,) if debug else (32, 64, 128),
      "grid_orders": (3,) if debug else (3, 4, 5, 6),
      "grid_terms": (8,) if debug else (1, 4, 8),
      "grid_precision": "float16",
      "grid_rows": 1 if debug else 2,
      "formats": ("float16",) if debug else FORMATS,
      "error_chunk_size": 64,
      "error_matrices": 20 if debug else 240,
      "captured_rows": 1 if debug else 4,
      "plan_formats": ("INT16",) if debug else PLANNED,
      "plan_chunk_sizes": (64,) if debug else (64, 128),
      "tolerances": (0.01,) if debug else (0.5, 0.01, 0.001),
      "seed": 0,
    }
  )
