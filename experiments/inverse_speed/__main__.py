"""`python -m experiments.inverse_speed`."""

from experiments.inverse_speed import study

study.main()
