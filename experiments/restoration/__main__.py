"""`python -m experiments.restoration`."""

from experiments.harness import runner
from experiments.restoration import study

runner.main(
  "restoration",
  study.Settings,
  study.restore,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
)
