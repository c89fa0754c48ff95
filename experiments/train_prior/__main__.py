"""`python -m experiments.train_prior`."""

from experiments.harness import runner
from experiments.train_prior import study

runner.main(
  "train_prior",
  study.Settings,
  study.train,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
)
