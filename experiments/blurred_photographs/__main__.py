"""`python -m experiments.blurred_photographs`."""

from experiments.blurred_photographs import study
from experiments.blurred_photographs.settings import Settings
from experiments.harness import runner

runner.main(
  "blurred_photographs",
  Settings,
  study.study,
  prepare=study.prepare,
  inputs=study.inputs,
)
