"""`python -m experiments.restore`."""

from experiments.harness import runner
from experiments.restore import job, study

runner.main(
  "restore",
  job.Settings,
  study.restore,
  prepare=job.prepare,
  inputs=study.inputs,
  resumable=True,
)
