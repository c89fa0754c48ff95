"""`python -m experiments.tpu_cycles`."""

from experiments.tpu_cycles import study

study.main()
