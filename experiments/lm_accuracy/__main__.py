"""`python -m experiments.lm_accuracy`."""

from experiments.harness import runner
from experiments.lm_accuracy import study

runner.main(
  "lm_accuracy",
  study.Settings,
  study.lm_accuracy,
  prepare=study.prepare,
  inputs=study.inputs,
)
