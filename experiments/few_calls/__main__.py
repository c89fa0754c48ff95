"""`python -m experiments.few_calls`."""

from experiments.few_calls import settings, study
from experiments.harness import runner

runner.main(
  "few_calls",
  settings.Settings,
  study.compare,
  prepare=settings.prepare,
  inputs=settings.inputs,
)
