"""The byte model: training of the hybrid model on the standard library.

Command: python -m experiments.train_lm
  --config.data=DIR trains on another folder of text files.
  --config=configs/train_lm.py:attention trains a transformer of the same size,
  full attention in every layer; give both the same --config.steps.
  --config=configs/train_lm.py:debug trains a tiny model for the tests.
  --resume goes on with a run that was cut short.
Time: 8 minutes on a GPU, whatever its speed: the number of steps follows.
Expected: language_model.json and language_model.safetensors, and report.html
with bits per byte of held-out modules: 0.974 for the shipped model (2492 steps
in 353 s on one H100; `:attention` after as many 0.962, gzip 2.00, xz 1.69).
"""

from typing import Any

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them, "attention" is the baseline."""
  debug = is_debug(form, __file__, ("attention", "debug"))
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "data": "",
      "minutes": 0.0 if debug else 7.5,
      "steps": 6 if debug else 0,
      "devices": 1 if debug else 0,
      "save_every": 3 if debug else 1000,
      "report_every": 2 if debug else 50,
      "task_batches": 1 if debug else 16,
      "held_out_bytes": 2000 if debug else 0,
      "model": _model(form),
      "execution": {
        "dtype": "float32" if debug else "bfloat16",
        "rule": {
          "chunk_size": 32 if debug else 64,
          "spec": "ladder float32",
          "fused": False,
          "implementation": "auto",
        },
        "attention": "auto",
        "scan_layers": not debug,
        "remat": "none",
      },
      "optim": {
        "rate": 2e-3,
        "warmup": 2 if debug else 300,
        "constant": 0.2,
        "clip": 1.0,
        "decay": 0.1,
      },
      "batch": {
        "length": 128 if debug else 1024,
        "text": 4 if debug else 25,
        "recall": 1 if debug else 3,
        "needle": 1 if debug else 2,
        "state": 1,
        "copy": 1,
      },
    }
  )


def _model(form: str) -> dict:
  """Eight layers, every fourth of full attention; or all of them."""
  if form == "debug":
    return {
      "vocab_size": 264,
      "hidden_size": 32,
      "num_hidden_layers": 2,
      "layer_types": ("linear_attention", "full_attention"),
      "intermediate_size": 48,
      "num_attention_heads": 2,
      "num_key_value_heads": 1,
      "head_dim": 16,
      "linear_num_key_heads": 2,
      "linear_num_value_heads": 2,
      "linear_key_head_dim": 16,
      "linear_value_head_dim": 16,
      "rope_theta": 1e4,
    }
  model: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "rope_theta": 1e4,
  }
  if form == "attention":
    # Wider between its layers, for the same number of parameters.
    model |= {
      "layer_types": ("full_attention",) * 8,
      "intermediate_size": 836,
      "partial_rotary_factor": 1.0,
    }
  return model
