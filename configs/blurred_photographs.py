"""Blurred photographs: little noise, a turned kernel, a real border.

Command: python -m experiments.blurred_photographs --config.folder=PICTURES
  only: names of files in the folder, all by default; parts: "noise", "kernel",
  "border"; --config=configs/blurred_photographs.py:debug restores one small
  crop of each under a known prior, for the tests.
Time: a photograph takes 4 minutes on 2 CPU cores, half of them for "noise";
`:debug` half a minute.
Expected: PSNR of every photograph, Tikhonov's beside it, and medians; the
tables of docs/benchmarks/restoration.md for photographs of the Kodak set.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "folder": "",
      "only": (),
      "parts": ("noise", "kernel", "border"),
      "height": 48 if debug else 128,
      "width": 56 if debug else 160,
      "noise": (0.01,) if debug else (0.0023, 0.01),
      # 13.75 lies between two of the kernels that are drawn from.
      "turn": 15.0 if debug else 13.75,
      "levels": 20 if debug else 60,
      "prior": "gaussian" if debug else "",
      "seed": 0,
    }
  )
