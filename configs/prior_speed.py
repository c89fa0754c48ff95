"""Time of one call of the photo prior, beside the same network in PyTorch.

Command: python -m experiments.prior_speed
  --config=configs/prior_speed.py:debug times tiny images, for the tests.
Time: 3 minutes on one GPU, most of it compilation; `:debug` seconds.
Expected: milliseconds of 32 images of 256 x 256 in JAX and, on a GPU with
torch, in PyTorch; the last line is their ratio, which should not exceed 1.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "batch": 1 if debug else 32,
      "size": 32 if debug else 256,
      "dtypes": ("float32",) if debug else ("bfloat16",),
      "repeats": 2 if debug else 7,
      "inner": 1 if debug else 10,
    }
  )
