"""`python -m experiments.levy`."""

from experiments.harness import runner
from experiments.levy import study

runner.main("levy", study.Settings, study.levy, resumable=True)
