"""`python -m experiments.few_calls`."""

from experiments.few_calls import study
from experiments.harness import runner

runner.main("few_calls", study.Settings, study.compare, prepare=study.prepare)
