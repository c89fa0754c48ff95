"""Every mutant of `tests/mutants.py` is killed by the test that it names."""

import pytest

from tests import mutants


@pytest.mark.slow
@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_mutant_is_killed(name):
  assert mutants.killed(name)


def test_mutants_replace_what_is_there():
  """A renamed function would be a mutant that breaks nothing."""
  for mutant in mutants.MUTANTS.values():
    assert callable(getattr(mutant.module, mutant.name))
