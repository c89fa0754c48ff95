"""`python -m experiments.finetune`."""

from experiments.finetune import study
from experiments.harness import runner

runner.main(
  "finetune",
  study.Settings,
  study.finetune,
  prepare=study.prepare,
  inputs=study.inputs,
  resumable=True,
  many_hosts=True,
)
