"""Every method tuned alike for 20, 100 and 1000 network evaluations.

Command: python -m experiments.equal_tuning --config.folder=PICTURES
  --config.photographs=OTHERS --config.lpips=FILE
  --config.methods="('NFC, perceptual()','DPIR')"
  --config.tasks="('gaussian_blur',)": a part of it;
  --config=configs/equal_tuning.py:debug: crops of 32 x 32, a known prior.
Time: about 25 minutes on one H200 by two processes that share the cells, and
  longer with motion blur at 1000 evaluations, which the committed rows lack.
Expected: two tables, of all points that were tried and of the pictures of the
report by what was best for PSNR and for LPIPS.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "folder": "",
      "photographs": "",
      "side": 40 if debug else 512,
      "pictures": 2 if debug else 24,
      "size": 32 if debug else 128,
      "noise_std": 0.05,
      "prior": "gaussian" if debug else "",
      "dtype": "float32" if debug else "bfloat16",
      "lpips": "",
      "tasks": ("super_resolution",)
      if debug
      else (
        # The last takes the longest.
        "super_resolution",
        "gaussian_blur",
        "random_inpainting",
        "box_inpainting",
        "motion_blur",
      ),
      "methods": ("NFC, fast()", "DPIR") if debug else (),
      "evaluations": (10, 20) if debug else (20, 100, 1000),
      "rounds": (2, 1) if debug else (8, 5, 1),
      "tuned_on": (2, 2) if debug else (8, 8, 4),
      "chains": (2,) if debug else (5,),
      "slots": 4 if debug else 48,
      "workers": 2 if debug else 14,
    }
  )
