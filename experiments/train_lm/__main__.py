"""`python -m experiments.train_lm`."""

from experiments.harness import runner
from experiments.train_lm import study

runner.main(
  "train_lm",
  study.Settings,
  study.train,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
  many_hosts=True,
)
