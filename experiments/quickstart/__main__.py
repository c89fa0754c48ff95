"""`python -m experiments.quickstart`."""

from experiments.harness import runner
from experiments.quickstart import study

runner.main(
  "quickstart",
  study.Settings,
  study.quickstart,
  prepare=study.prepare,
  inputs=study.inputs,
)
