"""`NFCConfig.fast()` beside baselines tuned for as few network evaluations.

Command: python -m experiments.few_calls --config.folder=PICTURES
  --config.methods="('NFC, fast()','DPIR')" --config.most=1: these two, DPIR as
  it was tuned; --config.tuned_on=DIR tunes on photographs that
  `experiments.prior_sources DIR` fetched;
  --config.tasks="('gaussian blur',)" --config.calls="(5,)": one case.
  --config=configs/few_calls.py:debug: two crops of 32 x 32.
  prior: "" for the small shipped one, "large" for the large one, or a file; of
  pictures that it knows any way up, since `fast()` and its other forms turn
  them. "large" has learned from what --config.tuned_on=DIR tunes on.
Time: with the search of `fast()` 290 s on two H200s for all baselines at 5, 10
and 20 evaluations, most of it compiling; `fast()` and DPIR alone, as above, 190
s on one. On a CPU a method takes minutes for every task and number of
evaluations.
Expected: the paired differences: on 23 photographs of the Kodak set `fast()` is
0.05 dB below to 0.13 above DPIR on blurs, and 0.4 dB or more above all others.
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
      "pictures": 2 if debug else 24,
      "tuned_on": "",
      "size": 32 if debug else 96,
      "noise_std": 0.05,
      "prior": "",
      "tasks": ("gaussian blur",)
      if debug
      else (
        "gaussian blur",
        "motion blur, medium",
        "super resolution",
        "random inpainting",
        "box inpainting",
      ),
      "calls": (3,) if debug else (5, 20, 10),
      "methods": ("NFC, fast()", "DPIR") if debug else (),
      "crops": 1 if debug else 3,
      "most": 4 if debug else 60,
      "workers": 2 if debug else 14,
    }
  )
