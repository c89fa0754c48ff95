"""Tunes the knobs of every sampler on photographs that no report uses.

Command: python -m experiments.tune_samplers
  --resume goes on with a run that was cut short;
  --config=configs/tune_samplers.py:debug: one method, a known prior.
  Most settings of `tuned()` were found with two photographs, tissue and retina,
  and 400 calls: `--config.setup.photographs="('tissue','retina')"
  --config.evaluations=400`; for DAPS on a CPU, `--config.setup.size=128
  --config.setup.dtype=float32`; NFC's width and last noise with all four
  photographs and 1000 calls.
Time: hours on a CPU, minutes on GPUs; `:debug` 30 seconds.
Expected: for every method its points by mean PSNR of one sample.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "setup": {
        "seed": 1,
        "photographs": ("tissue", "retina")
        if debug
        else ("tissue", "retina", "galaxies", "moon"),
        "folder": "",
        "size": 64 if debug else 256,
        "noise_std": 0.05,
        "prior": "gaussian" if debug else "",
        "dtype": "float32" if debug else "bfloat16",
        "lpips": "",
      },
      "methods": ("PiGDM",) if debug else (),
      "tasks": (
        ("super resolution",)
        if debug
        else (
          "motion blur, medium",
          "super resolution",
          "random inpainting",
        )
      ),
      "evaluations": 10 if debug else 1000,
      "workers": 2 if debug else 14,
    }
  )
