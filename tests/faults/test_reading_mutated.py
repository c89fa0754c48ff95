"""Mutated files of every kind end in a load or in one sentence."""

import hypothesis
import numpy as np
import pytest

from tests.faults import kinds, reading_table


@pytest.mark.parametrize("name", kinds.KINDS)
def test_mutated_files_end_in_a_sentence(tmp_path, name):
  """What reads is fast enough for many; `reading_table` builds models too."""
  kind = kinds.KINDS[name]
  folder = kinds.make(kind, tmp_path)
  file = folder / kind.file
  sound = file.read_bytes()
  kind.read(folder)

  @hypothesis.settings(
    max_examples=40,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(kind.mutations(sound))
  def one(data):
    file.write_bytes(data)
    with kinds.inside(folder):
      kinds.outcome(lambda: kind.read(folder), folder)

  one()


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.KINDS)
def test_files_cut_at_every_length(tmp_path, name):
  """At most 2000 lengths, evenly."""
  kind = kinds.KINDS[name]
  folder = kinds.make(kind, tmp_path)
  file = folder / kind.file
  sound = file.read_bytes()
  for length in np.unique(np.linspace(0, len(sound), 2000).astype(int)):
    file.write_bytes(sound[:length])
    kinds.outcome(lambda: kind.read(folder), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", kinds.KINDS)
def test_a_thousand_mutated_files(name):
  (row,) = reading_table.table([name], 1000)
  assert row["files"] >= 1000 and not row["failures"], row
