"""Equal tuning: means of chains, by the winner of each criterion."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.equal_tuning import bench, study, tables
from experiments.equal_tuning.known import parsed
from tests.test_equal_tuning_cells import given as given  # a fixture
from tests.test_equal_tuning_known import going_on, merged_into, only


class Constant:
  """Restores a picture as its point's weight and its own number."""

  chained = ()  # weights of the slots of chains behind the first

  def __init__(self, *_):
    self.takes = lambda _: True

  def compile(self, *_):
    pass

  def __call__(self, slots, pictures):
    later = (slot for slot in slots if slot.chain > 0)
    self.chained.extend(slot.point["weight"] for slot in later)
    values = [
      # The mean of two chains is without -1 and 1.
      slot.point["weight"] + slot.picture + (2 * slot.chain - 1)
      for slot in slots
    ]
    shape = (len(slots), *pictures.truth.shape[1:])
    return jnp.broadcast_to(jnp.array(values)[:, None, None, None], shape)


def scored(sign):
  """PSNR grows with the weight; LPIPS, which is to be small, by a sign."""

  def scores(x, truth, lpips):
    del truth, lpips
    value = x.mean(axis=(1, 2, 3))
    return value, 100 + sign * value

  return scores


@pytest.fixture
def worked(given, tmp_path, monkeypatch):
  """Rows of a run with one method, means of two chains and a sign of LPIPS."""
  monkeypatch.setattr(bench, "Program", Constant)

  def run(sign, *, of=given, name="cells"):
    monkeypatch.setattr(Constant, "chained", [])
    monkeypatch.setattr(bench, "scores", scored(sign))
    changes = {"methods": ("DPIR",), "draws": ()}
    settings = dataclasses.replace(of.settings, **changes)
    one = of._replace(settings=settings)
    return [*study.work(one, tmp_path / name, lambda _: None)]

  return run


def test_means_are_by_the_winner_of_each_criterion(worked):
  """A mean for LPIPS by the winner for PSNR would be the largest weight."""
  rows = worked(+1)
  weights = {}
  for criterion, best in (("PSNR", max), ("LPIPS", min)):
    tried = only(rows, tables.TRIED, evaluations=10)
    weights[criterion] = best(parsed(row["point"])["weight"] for row in tried)
    own = only(rows, tables.TABLE, chains=2, **{"tuned for": criterion})
    assert [row["picture"] for row in own] == ["a", "b"]
    assert {(row["evaluations"], row["draws"]) for row in own} == {(20, 1)}
    for number, row in enumerate(own):
      assert parsed(row["point"])["weight"] == weights[criterion]
      restored = weights[criterion] + number
      np.testing.assert_allclose(row["psnr"], restored, rtol=1e-4)
      np.testing.assert_allclose(row["lpips"], 100 + row["psnr"], rtol=1e-4)
  assert weights["LPIPS"] < weights["PSNR"]
  assert {*Constant.chained} == {*weights.values()}


def test_chains_of_a_point_that_wins_by_both_scores_run_once(worked):
  rows = worked(-1)
  first, second = (
    only(rows, tables.TABLE, chains=2, **{"tuned for": criterion})
    for criterion in ("PSNR", "LPIPS")
  )
  assert len(first) == 2 and second == [
    row | {"tuned for": "LPIPS"} for row in first
  ]
  assert len(Constant.chained) == 2  # pictures


def test_a_mean_that_is_known_stands_and_the_other_one_is_made(
  given, worked, tmp_path
):
  """As of rows from when there were means for PSNR alone."""
  rows = worked(+1)
  folder = merged_into(tmp_path / "known", rows)
  file = folder / tables.ROWS.name
  old = tables.read(file)
  old = old[(old["chains"] == 1) | (old["tuned for"] == "PSNR")]
  old.loc[old["chains"] > 1, "psnr"] += 7  # as no run would have them
  tables.packed(old).to_csv(file, index=False)
  again = worked(+1, of=going_on(given, folder, rounds=(0, 0)), name="again")
  for criterion, more in (("PSNR", 7), ("LPIPS", 0)):
    about = {"chains": 2, "tuned for": criterion}
    before, after = (
      only(each, tables.TABLE, **about) for each in (rows, again)
    )
    assert len(after) == 2
    for one, two in zip(before, after):
      np.testing.assert_allclose(two["psnr"], one["psnr"] + more, atol=1e-3)
      assert two["point"] == one["point"]
  assert len({*Constant.chained}) == 1 and len(Constant.chained) == 2


def test_winners_that_restore_again_have_means_of_both(given, worked, tmp_path):
  rows = worked(+1)
  folder = merged_into(tmp_path / "known", rows)
  of = going_on(given, folder, rounds=(0, 0), again=True)
  again = worked(+1, of=of, name="again")
  before, after = (only(each, tables.TABLE, chains=2) for each in (rows, again))
  assert [row["point"] for row in after] == [row["point"] for row in before]
  assert len(Constant.chained) == 4  # two points and two pictures
