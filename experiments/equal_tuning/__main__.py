"""`python -m experiments.equal_tuning`."""

from experiments.equal_tuning import settings, study
from experiments.harness import runner

runner.main(
  "equal_tuning",
  settings.Settings,
  study.compare,
  prepare=settings.prepare,
  inputs=settings.inputs,
)
