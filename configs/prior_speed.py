"""Time of one call of the photo priors, beside the small one's in PyTorch.

Command: python -m experiments.prior_speed
  --config=configs/prior_speed.py:debug times tiny images, for the tests.
  --config.batch=1 --config.dtypes="('float32',)" is for CPUs.
Time: minutes on one GPU, most of it compilation; 2 for one image in float32 on
two CPU cores; `:debug` seconds.
Expected: milliseconds of 32 images of 256 x 256 in JAX, of the small and the
large prior in turns, and, on a GPU with torch, of the small one in PyTorch. The
ratio to compiled PyTorch should not exceed 1; the last line, how many times as
long the large prior takes, with its least and greatest over the turns, is near
3.6, as many times as many operations.
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
