"""`NFCConfig.fast()` beside DPIR and DiffPIR tuned for the same few calls.

Command: python -m experiments.few_calls --config.folder=PICTURES
  --config.tasks="('gaussian blur',)" --config.calls="(5,)": one case.
  --config=configs/few_calls.py:debug: two crops of 32 x 32.
Time: 5 minutes a task and number of calls for 23 pictures on 2 busy CPU cores.
Expected: the paired differences, printed after every case: at 5 calls on 23
photographs of the Kodak set 0.13 dB above DPIR on motion blur and 0.06 on
Gaussian blur.
"""

import ml_collections


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  if form not in ("", "debug"):
    raise ValueError(f"configs/few_calls.py has the form debug, not {form!r}")
  debug = form == "debug"
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "folder": "",
      "pictures": 2 if debug else 24,
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
