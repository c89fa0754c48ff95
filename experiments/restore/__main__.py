"""`python -m experiments.restore`."""

from experiments.harness import runner
from experiments.restore import study

runner.main("restore", study.Settings, study.restore, prepare=study.prepare)
