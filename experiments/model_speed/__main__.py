"""`python -m experiments.model_speed`."""

from experiments.model_speed import study

study.main()
