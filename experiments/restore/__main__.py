"""`python -m experiments.restore`."""

from experiments.harness import runner
from experiments.restore import folder, job

runner.main(
  "restore",
  job.Settings,
  folder.restore,
  prepare=folder.prepare,
  inputs=folder.inputs,
  resumable=True,
)
