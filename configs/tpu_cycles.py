"""Static cycles of TPU kernels, compiled on a CPU host with libtpu.

Command: python -m experiments.tpu_cycles
  --config=configs/tpu_cycles.py:debug takes one kind, one batch, two kernels;
  --config.parts="('rule',)" the whole rule alone, ('layer',) a decoder layer.
Time: about 25 minutes on 2 CPU cores, most of it batches of 128, and half an
hour for the rule; `:debug` 1 minute; at once where libtpu is not installed,
which one sentence says.
Expected: report.html, whose path is printed last, after a table of scheduled
bundles a matrix by kernel, kind of TPU and batch. The bfloat16 ladder takes the
fewest at an error of 2e-2; the paper's own banded form is wrong by more than
half on some keys. In float32, at a batch of 128, substitution with the batch in
the lanes takes fewer than any product does. tokamax's row says why it is
missing where it is; pip install tokamax==0.0.17 brings it. The second table is
bundles of the whole rule per 64 tokens of a value head (of one token, per
head), alone and with what a layer has around it, with milliseconds that are
predicted from them, beside the rules of tokamax and of deltanet-tpu where they
are installed (pip install deltanet-tpu==0.3.0); the third is the inverse's
share of a decoder layer.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  kernels = (
    "ladder bfloat16",
    "substitution, rows in lanes",
    "tokamax float32",
    "ladder bfloat16 refine",
    "ladder float32",
    "ladder int8-envelope",
    "newton bfloat16",
    "banded N3 S8 bfloat16",
    "banded N3 S8 float32",
    "banded-masked N3 S16 bfloat16",
    "substitution, batch in lanes",
  )
  return ml_collections.ConfigDict(
    {
      "parts": ("inverse",) if debug else ("inverse", "rule", "layer"),
      "kinds": ("v5e",) if debug else ("v5e", "v5p", "v6e", "7x"),
      "batches": (8,) if debug else (8, 32, 128),
      "kernels": kernels[:2] if debug else kernels,
      "draws": 1 if debug else 5,
      "rules": (
        "ladder bfloat16, bfloat16 operands, forward",
        "ladder bfloat16, bfloat16 operands, with gradients",
        "ladder bfloat16 refine, bfloat16 operands, forward",
        "ladder float32, float32 operands, forward",
        "ladder float32, float32 operands, with gradients",
        "ladder bfloat16, convolution, gates and rule, forward",
        "ladder bfloat16, convolution, gates and rule, with gradients",
        "ladder bfloat16, between projections, forward",
        "ladder bfloat16, between projections, with gradients",
        "one token of 128 rows, float32 states",
        "one token of 128 rows, bfloat16 states",
        "tokamax convolution, gates and rule, forward",
        "deltanet-tpu, forward",
        "deltanet-tpu, with gradients",
      ),
      "shape": (1, 512, 2, 4) if debug else (1, 8192, 16, 32),
      "seed": 0,
    }
  )
