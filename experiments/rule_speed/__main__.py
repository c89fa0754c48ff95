"""`python -m experiments.rule_speed`."""

from experiments.rule_speed import study

study.main()
