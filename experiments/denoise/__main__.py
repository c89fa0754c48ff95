"""`python -m experiments.denoise`."""

from experiments.denoise import study
from experiments.harness import runner

runner.main(
  "denoise",
  study.Settings,
  study.denoise,
  prepare=study.prepare,
  inputs=study.inputs,
)
