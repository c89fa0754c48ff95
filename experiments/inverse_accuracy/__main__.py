"""`python -m experiments.inverse_accuracy`."""

from experiments.harness import runner
from experiments.inverse_accuracy import study
from experiments.inverse_accuracy.errors import InverseSettings

runner.main("inverse_accuracy", InverseSettings, study.inverse_accuracy)
