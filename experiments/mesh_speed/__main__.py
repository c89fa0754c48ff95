"""`python -m experiments.mesh_speed`."""

from experiments.mesh_speed import study

study.main()
