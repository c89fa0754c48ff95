"""Denoising of held-out photographs: the photo prior against BM3D and others.

Command: python -m experiments.denoise
  --config.prior=large evaluates the large shipped prior instead of the small
  one, --config.prior=FOLDER/photo_prior.json another run's weights;
  --config=configs/denoise.py:debug shrinks the photographs for the tests.
Time: 5 minutes on 2 CPU cores with BM3D; `:debug` 1 minute.
Expected: report.html with PSNR at sigma 15, 25 and 50 of 255, means over
astronaut, chelsea, coffee and china at 256 x 256: 34.5, 32.0 and 28.7 dB for
the photo prior, 33.9, 31.3 and 28.0 dB for BM3D.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "prior": "",
      "dtype": "float32",
      "photographs": ("astronaut", "chelsea", "coffee", "china"),
      "size": 32 if debug else 256,
      "sigmas": (15.0, 25.0, 50.0),
      "other": "astronaut",
      "other_sizes": (16,) if debug else (64, 128, 512),
    }
  )
