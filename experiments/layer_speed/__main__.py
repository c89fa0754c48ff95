"""`python -m experiments.layer_speed`."""

from experiments.layer_speed import study

study.main()
