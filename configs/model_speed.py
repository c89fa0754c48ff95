"""Time of training, prefill and decoding of whole models, random weights.

Command: python -m experiments.model_speed
  --config=configs/model_speed.py:debug runs a tiny model, in XLA. A part of it:
  --config.models="('Qwen3.5-0.8B',)" --config.passes="('decode',)".
  What the room of a cache costs, on a CPU too: --config.models="('small',)"
  --config.passes="('decode',)" --config.rows="(1,)" --config.prompt=22
  --config.written=128 --config.capacities="(192,4096,16384)"
  --config.dtype=float32 --config.implementation=xla, and with
  --config.scanned=True.
Time: most of it compiles; two and a half minutes on one H200 for the smallest
model, half an hour expected for all; `:debug` ten seconds.
Expected: a line a model and pass, a table of milliseconds, tokens a second and
shares of the card's peak, then the path of report.html. On one H200 the
smallest model trains on 8192 tokens in 156 ms, reads as many in 28 ms and
writes one in 1.01 ms; 4B and 9B read as many in 137 and 202 ms, and write one
in 4.00 and 5.82 ms. docs/benchmarks/speed.md has them all.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and stays in XLA."""
  debug = is_debug(form, __file__)
  models = ("Qwen3.5-0.8B", "Qwen3.5-4B", "Qwen3.5-9B")
  return ml_collections.ConfigDict(
    {
      "implementation": "xla" if debug else "auto",
      "models": ("tiny",) if debug else models,
      "passes": ("train", "prefill", "decode"),
      "tokens": 64 if debug else 8192,
      "rows": (2,) if debug else (1, 8),
      "prompt": 8 if debug else 128,
      "written": 8 if debug else 256,
      "capacities": (0, 64) if debug else (0,),
      "scanned": False,
      "remat": "names",
      "dtype": "float32" if debug else "bfloat16",
      "repeats": 2 if debug else 5,
      "seed": 0,
    }
  )
