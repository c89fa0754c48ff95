"""Phase retrieval of photographs: noise-frequency continuation beside DAPS.

Command: python -m experiments.phase_retrieval --config.folder=PICTURES
  --config=configs/phase_retrieval.py:debug takes one photograph of 16 x 16, two
  restarts and a known prior, for the tests.
Time: six photographs take 15 to 20 s a method on one H200 with dtype=bfloat16;
three of 64 x 64 with levels=40 take 4 minutes a method on 2 busy CPU cores,
`:debug` 20 seconds.
Expected: the PSNR of every restart, and of each method the median of the best
of four, the share of photographs above 25 dB, and the spread over restarts: a
quarter is found under the small shipped prior (docs/benchmarks/restoration.md).
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "folder": "",
      "pictures": 1 if debug else 6,
      "size": 16 if debug else 256,
      "noise_std": 0.05,
      "restarts": 2 if debug else 4,
      "success": 25.0,
      "methods": ("DAPS", "NFC spectrum", "NFC Langevin"),
      "levels": 3 if debug else 200,
      "prior": "gaussian" if debug else "",
      "dtype": "float32",
      "seed": 0,
    }
  )
