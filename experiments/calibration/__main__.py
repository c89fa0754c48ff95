"""`python -m experiments.calibration`."""

from experiments.calibration import study
from experiments.harness import runner

runner.main("calibration", study.Settings, study.calibrate, resumable=True)
