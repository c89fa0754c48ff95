"""Every sampler on five restoration tasks, in one table and one report.

Command: python -m experiments.restoration
  --resume goes on with a run that was cut short;
  --config.setup.folder=DIR adds pictures of your own;
  --config.setup.lpips=FILE adds LPIPS, with weights of your own disk
  (`python -m experiments.perceptual_weights` writes them);
  --config=configs/restoration.py:debug: two methods, a known prior.
Time: not measured as a whole, by its parts about an hour on one H100; `:debug`
  40 seconds on 2 cores.
Expected: report.html: PSNR of one sample and of the mean of four in separate
tables, at equal calls and at equal seconds, pictures, the paper's ablation, and
what a wrong noise level, a wrong kernel and short schedules cost.
"""

import ml_collections

from configs import is_debug

MOTION = tuple(
  f"motion blur, {kernel}" for kernel in ("short", "medium", "long")
)


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "setup": {
        "seed": 0,
        "photographs": ("astronaut",)
        if debug
        else ("astronaut", "chelsea", "coffee", "china"),
        "folder": "",
        "size": 64 if debug else 256,
        "noise_std": 0.05,
        "prior": "gaussian" if debug else "",
        "dtype": "float32" if debug else "bfloat16",
        "lpips": "",
      },
      "parts": ("methods", "robustness")
      if debug
      else ("methods", "ablation", "robustness"),
      "methods": ("NFC", "MMPS") if debug else (),
      "settings": ("tuned",) if debug else (),
      "tasks": ("box inpainting", MOTION[0]) if debug else (),
      "evaluations": (5,) if debug else (100, 1000),
      "samples": 2 if debug else 4,
      "ablation_tasks": MOTION[:1]
      if debug
      else ("super resolution", MOTION[1]),
      "robust_methods": ("MMPS",) if debug else ("NFC", "DAPS"),
      "robust_evaluations": 5 if debug else 200,
      "workers": 2 if debug else 14,
    }
  )
