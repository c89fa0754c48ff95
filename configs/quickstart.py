"""Quickstart: both systems on real data, on a CPU, into one HTML report.

Command: python -m experiments.quickstart
  --config=configs/quickstart.py:debug shrinks every part for tests.
Time: 131 s on 2 CPU cores, 174 s with pip's installation from a fresh clone;
  `:debug` half a minute.
Expected: report.html, whose path is printed last. In it, on every family of
keys, the ladder stays within 2e-6 of the float64 inverse in float32 and near
1e-2 in bfloat16, while the paper's banded form fails on low-rank and periodic
keys; a photograph that `NFCConfig.fast()` restores better than it was measured
under every operator; and calibrated samples whose variance over the exact
posterior's is near 1 in every band of frequency. `tests/test_quickstart.py`
holds that ratio to 1 within 0.05 and 5 standard errors, for `:debug`.
"""

import ml_collections

from configs import inverse_accuracy, is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "inverse": inverse_accuracy.get_config(form),
      "restoration": {
        "seed": 0,
        # Compiling a network for every operator is most of the time.
        "prior": "gaussian" if debug else "",
        "photograph": "astronaut",
        "size": 64 if debug else 128,
        "noise_std": 0.05,
        "calls": 5 if debug else 10,
        "baselines": (
          ("DPIR",) * 5
          if debug
          else ("DPIR", "DiffPIR", "DiffPIR", "DPIR", "DPIR")
        ),
        "num_samples": 2 if debug else 3,
        "levels": 2 if debug else 10,
        "workers": 2,
      },
      "known": {
        "seed": 0,
        "images": 2 if debug else 8,
        "size": 16 if debug else 32,
        "noise_std": 0.05,
        "num_samples": 32,
        "levels": 5 if debug else 20,
      },
    }
  )
