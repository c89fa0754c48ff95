"""Time, memory and error of the whole delta rule on a GPU, beside others'.

Command: python -m experiments.rule_speed
  --config=configs/rule_speed.py:debug runs everything tiny, in XLA, on a CPU,
  for the tests only. Without a rule: --config.skip="('FlashQLA',)".
  configs/rule_speed.py:fla has fla's own shapes, beside fla; its other two are
  --config.dim=64 --config.shapes="((8, 1024, 8, 8),)" and
  --config.dim=256 --config.shapes="((8, 2048, 32, 32),)".
Time: not run whole since it sweeps; half an hour on one H200 is to be expected
with every rule, since FlashQLA compiles for 4 minutes, and so does fla's
backward pass where tilelang is installed. Seconds on a machine without a GPU,
where one sentence says so; `:debug` half a minute.
Expected: a line a measurement, then the folder with speed.csv, errors.csv
and hard.csv.
On one H200 with usual gates at 1 x 32768, 16/32: 0.53 ms forward and 2.23 ms
with gradients for this package, 1.08 and 4.22 for jax-linear-attention, 0.73
and 2.81 for FlashQLA, 2.0 forward for fla.
"""

import ml_collections

from configs import is_debug

HARD = ("independent", "cosine_0.5", "cosine_0.95", "rank_4", "period_7")

# The shapes of width 128 of fla's own benchmark of this rule.
FLA = (
  (1, 8192, 96, 96),
  (2, 16384, 16, 16),
  (4, 2048, 16, 16),
  (4, 4096, 64, 64),
)


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings.

  Args:
    form: "debug" shrinks them and stays in XLA; "fla" has the shapes of fla's
      benchmark alone, beside fla, and errors of one kind of keys.
  """
  debug = is_debug(form, __file__, ("debug", "fla"))
  if form == "fla":
    return _beside_fla()
  shapes = ((1, 8192, 16, 32), (1, 32768, 16, 32), (4, 4096, 16, 16), *FLA)
  return ml_collections.ConfigDict(
    {
      "implementation": "xla" if debug else "gpu",
      "shapes": ((1, 64, 1, 2),) if debug else shapes,
      "gates": ("usual", "-0.001") if debug else ("usual", "-0.001", "0"),
      "error_shape": (1, 64, 1, 2) if debug else (1, 2048, 4, 8),
      "families": HARD[:1] if debug else (*HARD, "identical"),
      "beta_max": (1.0,) if debug else (1.0, 2.0),
      "dim": 16 if debug else 128,
      "precision": "float16",
      "seed": 0,
      "repeats": 2 if debug else 5,
      "inner": 2 if debug else 10,
      "skip": (),
      "hard_sequences": 4 if debug else 100_000,
      "hard_tokens": 64 if debug else 256,
      "hard_calls": 2 if debug else 100,
    }
  )


def _beside_fla() -> ml_collections.ConfigDict:
  config = get_config()
  config.update(
    shapes=FLA,
    gates=("usual",),
    families=HARD[:1],
    beta_max=(1.0,),
    skip=("jax-linear-attention", "FlashQLA"),
    hard_sequences=0,
  )
  return config
