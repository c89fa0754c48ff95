"""Equal tuning: means of chains, by the winner of each criterion."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.equal_tuning import bench, report, study, tables
from experiments.equal_tuning.known import parsed
from experiments.equal_tuning.page import sections, standings
from experiments.harness import record
from tests.test_equal_tuning_cells import given as given  # a fixture
from tests.test_equal_tuning_known import going_on, merged_into, only
from tests.test_equal_tuning_tables import rows_of, trials_of


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


def beside(single, means):
  """Rows of single samples and of means of two chains at 20 evaluations."""
  rows = [rows_of(single), rows_of(means).assign(chains=2)]
  return pd.concat(rows, ignore_index=True)


def page(rows):
  text = sections.block(rows, trials_of("X", 20, [25.0]))
  return text.split("## Wins and ranks")[0]


def reported(rows, folder):
  trials = rows[["method", "evaluations", "task", "psnr"]]
  with record.Run(folder, command=["here"], config={}) as run:
    report.write(run, rows, trials, pd.DataFrame(), "two pictures")
  return (folder / "report.html").read_text()


def test_a_mean_has_the_psnr_and_the_lpips_of_what_was_tuned_for_it():
  """And is one of the results among which each side has its best."""
  rows = beside({"NFC, a": 27.0, "X": 25.0}, {"NFC, a": 26.0, "X": 28.0})
  lpips = (rows["chains"] == 2) & (rows["tuned for"] == "LPIPS")
  rows.loc[lpips, "lpips"] -= 0.5
  rows.loc[lpips, "psnr"] -= 20
  text = page(rows)
  _, means = text.split(
    "PSNR / LPIPS of the mean of 2 chains of 10 evaluations"
  )
  table, leads = means.split("each by one sample or by a mean of chains")
  assert "| X | **28.50** / **.215** | **28.50** / **.215** |" in table
  assert "| NFC, a | 26.50 / .235 | 26.50 / .235 |" in table
  assert (
    "| PSNR | box | NFC, a 27.50 | X, mean of 2: 28.50 "
    "| -1.00 (-1.00, -1.00) | behind |"
  ) in leads
  assert (
    "| LPIPS | box | NFC, a, mean of 2: 0.235 | X, mean of 2: 0.215 "
    "| -0.020 (-0.020, -0.020) | behind |"
  ) in leads
  ahead, behind = "2 / 0 / 0", "0 / 0 / 2"
  for score in tables.SCORES:
    assert f"| {score}, 20 | {ahead} | {ahead} | {behind} | - |" in text


def test_means_that_nobody_tuned_for_lpips_have_none(tmp_path):
  """Neither the LPIPS of those tuned for PSNR nor a verdict."""
  rows = beside({"NFC, a": 27.0, "X": 25.0}, {"NFC, a": 28.0, "X": 26.0})
  rows = rows[(rows["chains"] == 1) | (rows["tuned for"] == "PSNR")]
  text = page(rows)
  _, means = text.split(
    "PSNR / LPIPS of the mean of 2 chains of 10 evaluations"
  )
  assert "| X | 26.50 / - | 26.50 / - |" in means
  assert (
    "| PSNR | box | NFC, a, mean of 2: 28.50 | X, mean of 2: 26.50" in means
  )
  assert "| LPIPS |" not in means
  ahead = "2 / 0 / 0"
  assert f"| PSNR, 20 | {ahead} | {ahead} | {ahead} | - |" in text
  assert f"| LPIPS, 20 | {ahead} | {ahead} | - | - |" in text
  report_text = reported(rows, tmp_path / "run")
  assert "PSNR, 20, mean of chains" in report_text
  assert "LPIPS, 20, mean of chains" not in report_text


def test_the_report_has_means_of_either_score(tmp_path):
  rows = beside({"NFC, a": 27.0, "X": 25.0}, {"NFC, a": 28.0, "X": 26.0})
  lpips = (rows["chains"] == 2) & (rows["tuned for"] == "LPIPS")
  rows.loc[lpips, "lpips"] = 0.123
  text = reported(rows, tmp_path / "run")
  assert "0.123" in text.split("LPIPS, 20, mean of chains")[1]


def test_operators_without_means_of_the_others_have_no_verdict_by_them():
  """Nobody knows who would be the best there."""
  rows = beside(
    {"NFC, a": 27.0, "X": 25.0, "Y": 24.0, "Z": 23.0},
    {"NFC, a": 26.0, "X": 28.0, "Y": 24.0, "Z": 23.0},
  )
  lost = rows["method"].isin(["X", "Y"]) & (rows["chains"] == 2)
  left = rows[~lost | (rows["operator"] != "box")]
  found = standings.sample_or_mean(left, "PSNR", 20)
  assert list(found.index) == ["motion, short"]
  single = rows[rows["chains"] == 1]
  assert not len(standings.sample_or_mean(single, "PSNR", 20))
