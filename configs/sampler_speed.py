"""Images a second of the sampler, beside the same method in PyTorch.

Command: python -m experiments.sampler_speed
  --config=configs/sampler_speed.py:debug times tiny images, for the tests.
Time: 3 minutes on one GPU, most of it compilation; `:debug` 20 seconds.
Expected: images a second of 16 images of 256 x 256 and 100 levels in JAX and,
on a GPU with torch, in PyTorch; ratios; and 0 programs that JAX compiled after
the first run, though kernels and measurements change.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "batch": 1 if debug else 16,
      "size": 64 if debug else 256,
      "levels": 8 if debug else 100,
      "noise_std": 0.05,
      "dtype": "float32" if debug else "bfloat16",
      "repeats": 2 if debug else 7,
    }
  )
