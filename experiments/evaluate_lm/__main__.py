"""`python -m experiments.evaluate_lm`."""

from experiments.evaluate_lm import study
from experiments.harness import runner

runner.main(
  "evaluate_lm",
  study.Settings,
  study.evaluate_lm,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
  many_hosts=True,
)
