"""Time and error of a Gated DeltaNet layer on a GPU with each inverse.

Command: python -m experiments.layer_speed
  --config=configs/layer_speed.py:debug runs everything tiny, in XLA, on a CPU,
  for the tests only. One length: --config.tokens="(65536,)".
Time: about 3 minutes a length on one H100, a minute of them to tune fla's
kernels once, and seconds on a machine without a GPU, where one sentence says
so; `:debug` half a minute.
Expected: report.html, whose path is printed last, after a table: a layer of the
size of Qwen3.5-9B's at 8k to 64k tokens, the rule in it and the inverse in
that, beside fla's rule and the layer of transformers. With the exact solve the
inverse takes a fifth of the layer, with a kernel in float16 a fiftieth.
"""

import ml_collections

from configs import is_debug

SPECS = (
  "exact float32",
  "ladder float16",
  "ladder bfloat16",
  "ladder float32",
  "newton float16",
  "banded float16",
  "fused ladder float16",
  "xla exact float32",
)


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and stays in XLA."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "implementation": "xla" if debug else "gpu",
      "tokens": (64,) if debug else (8192, 16384, 32768, 65536),
      "hidden": 32 if debug else 4096,
      "key_heads": 2 if debug else 16,
      "value_heads": 4 if debug else 32,
      "dim": 16 if debug else 128,
      "conv_width": 4,
      "chunk_size": 16 if debug else 64,
      "seed": 0,
      "repeats": 2 if debug else 5,
      "inner": 2 if debug else 10,
      "specs": (SPECS[0], SPECS[6]) if debug else SPECS,
    }
  )
