"""An experiment as a process of the tests: `python -m tests.faults.drive NAME`.

Under the numerical policy of the tests and without optimisation, so that its
bits are those of the same experiment run inside of a test.
"""

import runpy
import sys

import jax

import tests.conftest  # noqa: F401  (the policy)


def drive(name: str, *arguments: str) -> None:
  """Runs the experiment's command in this process."""
  sys.argv = [name, *arguments]
  runpy.run_module(f"experiments.{name}", run_name="__main__")


if __name__ == "__main__":
  jax.config.update("jax_disable_most_optimizations", True)
  drive(*sys.argv[1:])
