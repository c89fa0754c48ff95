"""`python -m experiments.restoration`."""

from experiments.harness import runner
from experiments.restoration import setup, study

runner.main(
  "restoration",
  study.Settings,
  study.restore,
  prepare=setup.prepare,
  inputs=setup.inputs,
  resumable=True,
)
