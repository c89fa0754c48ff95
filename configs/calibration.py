"""Every sampler against exact posteriors: Gaussian images, 25-mode mixtures.

Command: python -m experiments.calibration
  --resume goes on with a run that was cut short;
  --config=configs/calibration.py:debug: two methods, small images.
Time: not measured as a whole; rows are kept as they come and --resume goes on.
  `--config.methods="('NFC',)" --config.settings="('calibrated',)"
  --config.dimensions="()"`: 20 minutes on one core. Langevin samplers and
  Jacobians in 80 dimensions want a GPU. `:debug` 1 minute on 2 cores.
Expected: report.html: for every method, setting and number of denoiser calls
the error of the mean, the ratio of variances in total and by radial band,
coverage of central intervals and the sliced Wasserstein distance beside that of
exact samples; NFC's `calibrated()` within 5 % of the variance on every task,
whether the spectrum it is given is right or off by a factor of 2.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "methods": ("NFC", "MMPS") if debug else (),
      "settings": ("tuned", "calibrated") if debug else (),
      "evaluations": (5,) if debug else (20, 200),
      "samples": 64 if debug else 1024,
      "directions": 64 if debug else 1000,
      "tasks": ("inpainting", "super-resolution")
      if debug
      else (
        "inpainting",
        "circular blur",
        "mirrored blur",
        "super-resolution",
      ),
      "size": 16 if debug else 32,
      "factors": (1.0, 2.0) if debug else (1.0, 0.5, 2.0),
      "dimensions": ((8, 2),)
      if debug
      else ((8, 1), (8, 2), (8, 4), (80, 1), (80, 2), (80, 4)),
      "problems": 2 if debug else 20,
      "workers": 2 if debug else 14,
    }
  )
