"""Time and error of the chunk inverse on a GPU, beside a copy and fla.

Command: python -m experiments.inverse_speed
  --config=configs/inverse_speed.py:debug runs everything tiny, in XLA, on a
  CPU, for the tests only. One part: --config.parts="('inverse',)".
Time: about 15 minutes on one H200, most of it compilation, and seconds on a
machine without a GPU, where one sentence says so; `:debug` 1 minute.
Expected: report.html, whose path is printed last, after a table: every inverse
with its time, ratios to a copy of the same bytes and to fla in the same
process, and worst error against float64. The sweep's counts of entries that
are not finite are 0; only those of the paper's own banded form need not be.
"""

import ml_collections

from configs import is_debug

SPECS = (
  "ladder float16",
  "ladder bfloat16",
  "ladder tf32",
  "ladder float32",
  "ladder int8-dynamic",
  "ladder int8-envelope",
  "ladder int16-dynamic",
  "ladder int16-envelope",
  "ladder float16 refine",
  "ladder bfloat16 refine",
  "newton float16",
  "banded float16",
  "banded-masked float16",
  "xla exact float32",
  "xla ladder float32",
)
STAGE_SPECS = ("ladder float16", "ladder bfloat16", "ladder tf32")
SWEEP_SPECS = (
  *(
    f"{method} {form}"
    for method in ("ladder", "newton", "banded-masked")
    for form in (
      "float16",
      "bfloat16",
      "int8-envelope",
      "float32",
      "tf32",
      "int16-envelope",
    )
  ),
  "banded float16",
  "banded bfloat16",
)


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and stays in XLA."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "implementation": "xla" if debug else "gpu",
      "parts": ("inverse", "stage", "sweep"),
      "count": 64 if debug else 32768,
      "chunk_size": 64,
      "seed": 0,
      "draws": 1 if debug else 10,
      "repeats": 2 if debug else 7,
      "inner": 2 if debug else 20,
      "specs": (*SPECS[:1], *SPECS[5:6], *SPECS[-4:]) if debug else SPECS,
      "stage_specs": STAGE_SPECS[:1] if debug else STAGE_SPECS,
      "tokens": 512 if debug else 65536,
      "heads": 2 if debug else 32,
      "dim": 32 if debug else 128,
      "sweep_specs": (SWEEP_SPECS[0], SWEEP_SPECS[-1])
      if debug
      else SWEEP_SPECS,
      "sweep_count": 100 if debug else 1_000_000,
    }
  )
