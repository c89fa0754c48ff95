"""Every sampler on Levy processes, whose posteriors are drawn exactly.

Command: python -m experiments.levy
  --resume goes on with a run that was cut short;
  --config=configs/levy.py:debug: two methods, one law, short signals.
Time: 10 seconds of one CPU core for every law, operator and method at 20 calls,
  compilation included, so 45 minutes for all; `:debug` 10 seconds.
Expected: report.html: for every law and operator the gap to the least mean
squared error and coverage by method, exact draws among them. NFC's
`calibrated()`: central 90 % intervals within 0.8 points for Gaussian, Laplace
and Student's t increments through all operators, 3 to 6 off for spike and slab.
`python -m experiments.levy.page RUN` takes a run's rows into the docs' tables.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "laws": ("Laplace",)
      if debug
      else ("Gaussian", "Laplace", "Student's t", "spike and slab"),
      "operators": ("imputation",)
      if debug
      else ("denoising", "deconvolution", "imputation", "partial Fourier"),
      "methods": ("NFC", "DiffPIR") if debug else (),
      "settings": ("calibrated", "tuned"),
      "evaluations": (4,) if debug else (20,),
      "samples": 19,
      "signals": 20 if debug else 50,
      "length": 16 if debug else 64,
      "burn_in": 20 if debug else 300,
      "sweeps": 60 if debug else 1000,
      "denoiser_burn_in": 4 if debug else 15,
      "denoiser_sweeps": 8 if debug else 32,
    }
  )
