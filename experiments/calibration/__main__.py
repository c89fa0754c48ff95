"""`python -m experiments.calibration`."""

from experiments.calibration import study, trials
from experiments.harness import runner

runner.main("calibration", trials.Settings, study.calibrate, resumable=True)
