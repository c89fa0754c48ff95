"""`python -m experiments.continuation`."""

from experiments.continuation import study
from experiments.continuation.settings import Settings
from experiments.harness import runner

runner.main(
  "continuation",
  Settings,
  study.continuation,
  prepare=study.prepare,
  inputs=study.inputs,
)
