"""Quickstart: both systems on real data, on a CPU, into one HTML report.

Command: python -m experiments.quickstart
  --config=configs/quickstart.py:debug shrinks every part for tests.
Time: 4 minutes on 2 CPU cores, plus installation; `:debug` 1 minute.
Expected: report.html, whose path is printed last. In it, on every family of
keys, the ladder stays within 2e-6 of the float64 inverse in float32 and near
1e-2 in bfloat16, while the paper's banded form fails on low-rank and periodic
keys; and the m-sample mean of calibrated NFC reaches the closed-form posterior
mean, within its Monte Carlo error, on every operator.
"""

import ml_collections

from configs import inverse_accuracy


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  if form not in ("", "debug"):
    raise ValueError(f"configs/quickstart.py has the form debug, not {form!r}")
  debug = form == "debug"
  return ml_collections.ConfigDict(
    {
      "inverse": inverse_accuracy.get_config(form),
      "restoration": {
        "seed": 0,
        "size": 64 if debug else 256,
        "noise_std": 0.05,
        "num_samples": 2 if debug else 4,
        "levels": 3 if debug else 30,
        "tolerance": 1e-2,
        "paper_levels": 2 if debug else 10,
        "paper_inner_steps": 3 if debug else 20,
        "photographs": ("astronaut", "coffee", "chelsea"),
        "workers": 2,
      },
    }
  )
