"""`python -m experiments.gradient_study`."""

from experiments.gradient_study import study
from experiments.harness import runner

runner.main(
  "gradient_study",
  study.Settings,
  study.study,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
)
