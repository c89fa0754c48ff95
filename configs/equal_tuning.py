"""Every method tuned alike for 20 to 1000 network evaluations.

Command: python -m experiments.equal_tuning --config.folder=PICTURES
  --config.photographs=OTHERS --config.lpips=FILE
  --config.methods="('NFC, perceptual()','DPIR')"
  --config.tasks="('gaussian_blur',)": a part of it;
  --config=configs/equal_tuning.py:debug: crops of 32 x 32, a known prior.
  --config.known="('experiments/equal_tuning',)" goes on from what is committed:
  what has its points and rows is not done again.
  --config.known=... --config.again=True --config.rounds="(0,0,0,0,0)" restores
  the pictures of the report by the committed winners, all in one run, and tries
  nothing; with --config.prior=large under another prior, where what the
  folder's `second_rows.csv` has of that one and of as many draws is not done
  again (the committed ones have one: --config.draws="()");
  --config.tasks="('motion_blur',)" --config.kernels="('p20','p30')" through
  further kernels. --config.evaluations="(1000,)" --config.rounds="(0,)"
  --config.tuned_on="(4,)" --config.draws="(1,)" --config.chains="()" does so at
  one budget.
  Several processes share the work by one --config.cells=FOLDER.
  A number of draws or chains is of the budget in its place; of budgets beyond
  it is 1, one sample and no mean. Means of chains are made by the winner for
  PSNR and by that for LPIPS, once where that is one point.
Time: one H200 with three processes did 336 cells of 20 to 200 evaluations in
1690 s, two with two each in 535 s 65 of those at 1000, where one takes 4 to 130
s, `calibrated()` on blurs up to 340. Motion blur at 128 pixels
needs eigenvectors, 5 s for a kernel on an H200 and many minutes on a CPU.
Expected: two tables, of all points that were tried and of the pictures of the
report by what was best for PSNR and for LPIPS, one sample and means of chains.
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
      "photographs": "",
      "side": 40 if debug else 512,
      "pictures": 2 if debug else 24,
      "size": 32 if debug else 128,
      "noise_std": 0.05,
      "prior": "gaussian" if debug else "",
      "dtype": "float32" if debug else "bfloat16",
      "lpips": "",
      "tasks": ("super_resolution",)
      if debug
      else (
        # The first takes the longest.
        "motion_blur",
        "super_resolution",
        "gaussian_blur",
        "random_inpainting",
        "box_inpainting",
      ),
      "kernels": ("short", "medium", "long"),
      "methods": ("NFC, fast()", "DPIR") if debug else (),
      "evaluations": (10, 20) if debug else (20, 50, 100, 200, 1000),
      "rounds": (2, 1) if debug else (12, 6, 9, 6, 3),
      "tuned_on": (2, 2) if debug else (8, 8, 8, 8, 4),
      "draws": (2,) if debug else (2, 2, 2, 1, 1),
      "chains": (2,) if debug else (5, 1, 10),
      "slots": 4 if debug else 48,
      "known": (),
      "again": False,
      "cells": "",
      "workers": 2 if debug else 14,
    }
  )
