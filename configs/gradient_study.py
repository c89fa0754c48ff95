"""Gradients of the chunk inverse: training under implicit and truncated ones.

Command: python -m experiments.gradient_study
  --config=configs/gradient_study.py:debug trains tiny models for the tests.
Time: 7 minutes on one H100 that trained another model besides; `:debug` 2
  minutes on 2 CPU cores.
Expected: losses.csv and cases.csv, and report.html with the curves and what
each case ends with: over 3 seeds 1.60 to 1.68 nats in all seven, whose
differences are within those of the seeds.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  cases = (
    "exact float32 implicit",
    "banded float32 implicit",
    "banded float32 truncated",
    "ladder bfloat16 implicit",
    "ladder bfloat16 truncated",
    "ladder int8-dynamic implicit",
    "ladder int8-dynamic truncated",
  )
  return ml_collections.ConfigDict(
    {
      "data": "",
      "seeds": 2 if debug else 3,
      "steps": 4 if debug else 400,
      "block": 2 if debug else 10,
      "cases": cases[:3:2] if debug else cases,
      "chunk_size": 16 if debug else 64,
      "dtype": "float32",
      "model": {
        "vocab_size": 264,
        "hidden_size": 32 if debug else 128,
        "num_hidden_layers": 2 if debug else 4,
        "layer_types": ("linear_attention",) * (1 if debug else 3)
        + ("full_attention",),
        "intermediate_size": 48 if debug else 384,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16 if debug else 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16 if debug else 64,
        "linear_value_head_dim": 16 if debug else 64,
        "rope_theta": 1e4,
      },
      "optim": {
        "rate": 2e-3,
        "warmup": 2 if debug else 50,
        "constant": 0.5,
        "clip": 1.0,
        "decay": 0.1,
      },
      "batch": {
        "length": 128 if debug else 256,
        "text": 2 if debug else 24,
        "recall": 1 if debug else 8,
        "needle": 0,
        "state": 0,
        "copy": 0,
      },
    }
  )
