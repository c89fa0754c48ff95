"""Tuning of a checkpoint on one's own texts and conversations.

Command: python -m experiments.finetune --config.checkpoint=DIR
  --config.data=chats.jsonl
  tunes LoRA adapters; --config.tuning=full tunes all parameters, and needs
  --config.execution.param_dtype=float32 and a smaller --config.optim.rate: the
  default, 2e-4, is one for adapters, 1e-5 is usual where all is tuned.
  --config.held_out=FILE takes the loss of a file before and after.
  --config=configs/finetune.py:debug tunes a small model of random weights on
  sources of the Python standard library, for the tests.
  --resume goes on with a run that was cut short.
Time: that of reading the checkpoint, of compilation, and of the steps. Measured
is only a small random model (`:debug`, 2 CPU cores with other work on them):
40 s of compilation, then 9 steps a second of adapters or 6 of all parameters,
with 4 rows of 128 tokens; on two H200s, 12 layers of hidden 1024: 107 ms a
step of eight rows of 2048 tokens. No published checkpoint was tried.
Expected: adapter/, the two files that PEFT reads, or with --config.tuning=full
model/, the checkpoint with its text weights tuned; and report.html with the
curve of the loss.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and needs no files."""
  debug = is_debug(form, __file__)
  narrow = "float32" if debug else "bfloat16"
  return ml_collections.ConfigDict(
    {
      "checkpoint": "random" if debug else "",
      "data": "",
      "held_out": "",
      "seed": 0,
      "minutes": 0.0,
      "steps": 6 if debug else 300,
      "save_every": 3 if debug else 100,
      "report_every": 1 if debug else 5,
      "length": 128 if debug else 2048,
      "rows": 4 if debug else 8,
      "packed": True,
      "turns": "all",
      "tuning": "lora",
      "lora": {
        "rank": 4 if debug else 16,
        "alpha": 8.0 if debug else 32.0,
        "targets": ("all-linear",),
        "use_rslora": False,
      },
      "adapters": "",
      "merged": False,
      "text_only": False,
      "balance": 0.001,
      "vocab_block": 8192,
      "mesh": {"data": 1 if debug else 0, "fsdp": 1, "tensor": 1},
      "execution": {
        "dtype": narrow,
        "param_dtype": narrow,
        "rule": {
          "chunk_size": 32 if debug else 64,
          "spec": "ladder float32",
          "fused": False,
          "implementation": "auto",
        },
        "attention": "auto",
        "scan_layers": not debug,
        "remat": "none" if debug else "full",
      },
      "optim": {
        "rate": 2e-3 if debug else 2e-4,
        "warmup": 2 if debug else 20,
        "constant": 0.2,
        "clip": 1.0,
        "decay": 0.0,
        "b2": 0.999,
      },
    }
  )
