"""Time of a training step on every mesh of the devices that are there.

Command: python -m experiments.mesh_speed
  --config=configs/mesh_speed.py:debug runs everything tiny, in XLA; on a CPU,
  XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight devices of one.
Time: about 6 minutes on two or four H200s; `:debug` a minute.
Expected: a line a mesh, a table of times, speed-ups and loss differences, then
the path of report.html. Meshes that the devices do not allow are named with the
reason, so that one device ends with one time. On two / four H200s: data 1.93x
/ 3.67x, fsdp 1.86x / 3.63x, tensor 1.74x (each step waited for) / 2.90x,
sequence 1.83x / 3.44x, of one long row 1.87x / 3.56x.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them and stays in XLA."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "implementation": "xla" if debug else "auto",
      "meshes": (
        "data",
        "fsdp",
        "tensor",
        "sequence",
        "data*tensor",
        "fsdp*sequence",
      ),
      "rows": 8 if debug else 4,
      "tokens": 64 if debug else 16384,
      "long_tokens": 128 if debug else 65536,
      "layers": 2 if debug else 4,
      "hidden": 32 if debug else 2048,
      "intermediate": 64 if debug else 6144,
      "vocabulary": 64 if debug else 8192,
      "heads": 4 if debug else 16,
      "key_heads": 4 if debug else 16,
      "value_heads": 4 if debug else 32,
      "dim": 8 if debug else 128,
      "dtype": "float32" if debug else "bfloat16",
      "rate": 1e-3,
      "steps": 2 if debug else 5,
      "repeats": 2 if debug else 7,
      "inner": 2 if debug else 4,
      "seed": 0,
    }
  )
