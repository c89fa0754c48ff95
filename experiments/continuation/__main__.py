"""`python -m experiments.continuation`."""

from experiments.continuation import study
from experiments.harness import runner

runner.main(
  "continuation", study.Settings, study.continuation, prepare=study.prepare
)
