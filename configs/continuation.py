"""Where continuation helps: in closed form, on mixtures and on photographs.

Command: python -m experiments.continuation
  --config.levels="(3,5,10)" asks for other numbers of levels;
  --config.mixtures=0 leaves the mixtures out;
  --config.folder=PICTURES --config.levels="(5,10,20,50)" adds photographs, for
  a GPU; --config.phase_levels="()" leaves out their phase retrieval;
  --config=configs/continuation.py:debug takes small images, for tests.
Time: seconds on a CPU for what is in closed form, 5 minutes for the mixtures.
Expected: report.html. With the width sigma^2 a band by the prior's spectrum is
worth 12 dB of motion blur at 3 levels, 4 to 5 at 5, 0.8 to 1.2 at 10 and
nothing at 200; the width of the spectrum does the same without a band. Where
the likelihood trusts a noise of 0.2 five times too much, a hard band is worth
13 dB at 5 levels. With a kernel turned by 15 degrees the uncertainty band is
worth 0.1 (short) to 1.6 dB (long) at 20 levels, and costs 0.3 to 1.1 dB where
the kernel is right. On mixtures weights take the error of the modes' shares
from 0.26 to 0.02 with one measurement.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "size": 32 if debug else 64,
      "kernels": ("short",)
      if debug
      else ("Gaussian", "short", "medium", "long"),
      "levels": (3, 20) if debug else (3, 5, 10, 20, 50, 200),
      "noise_std": 0.05,
      "strong_noise_std": 0.2,
      "tau_shares": (1.0, 0.2),
      "turn": 15.0,
      "published_levels": 5 if debug else 200,
      "mixtures": 1 if debug else 20,
      "particles": 64 if debug else 1024,
      "mixture_levels": (4,) if debug else (20,),
      "folder": "",
      "pictures": 23,
      "crop": 96,
      "phase_levels": (3,) if debug else (20, 100),
      "prior": "",
      "seed": 0,
      "workers": 2 if debug else 14,
    }
  )
