"""Equal tuning: its tables, its page and its report, of made-up rows."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from experiments.equal_tuning import (
  report,
  tables,
)
from experiments.equal_tuning.page import sections, shipped, standings
from experiments.harness import record


def rows_of(psnr):
  """Two pictures under two operators, by method; LPIPS falls as PSNR rises."""
  return tables.named(
    pd.DataFrame(
      [
        {
          "method": method,
          "evaluations": 20,
          "task": task,
          "kernel": kernel,
          "tuned for": criterion,
          "chains": 1,
          "draws": 1,
          "picture": picture,
          "psnr": value + number,
          "lpips": 1 - (value + number) / 100,
          "point": "a=1",
          "interior": True,
          "seconds": 0.5,
        }
        for method, value in psnr.items()
        for criterion in tables.SCORES
        for task, kernel in (("motion_blur", "short"), ("box_inpainting", ""))
        for number, picture in enumerate(("01", "02"))
      ]
    )
  )


def test_standing_is_paired_and_positive_where_nfc_is_better():
  rows = rows_of({"NFC, a": 27.0, "NFC, b": 26.0, "X": 25.0, "Y": 24.0})
  for criterion, lead in (("PSNR", 2.0), ("LPIPS", 0.02)):
    found = tables.standing(tables.chosen(rows, criterion, 20), criterion)
    assert list(found.index) == ["motion, short", "box"]
    np.testing.assert_allclose(found["lead"], lead)
    assert set(found["best of NFC"]) == {"NFC, a"}
    assert set(found["best other"]) == {"X"}
    assert set(found["NFC is"]) == {tables.AHEAD}
  behind = tables.chosen(rows_of({"NFC, a": 20.0, "X": 25.0}), "LPIPS", 20)
  assert set(tables.standing(behind, "LPIPS")["NFC is"]) == {tables.BEHIND}


def test_others_may_spend_less_than_nfc():
  """And NFC is what it is at the budget; X is worse with more."""
  few = rows_of({"NFC, a": 30.0, "X": 28.0, "Y": 20.0})
  many = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 26.0})
  # Of a larger budget nothing counts.
  most = rows_of({"NFC, a": 40.0, "X": 40.0}).assign(evaluations=1000)
  rows = pd.concat([few, many.assign(evaluations=100), most])
  for criterion, lead in (("PSNR", -1.0), ("LPIPS", -0.01)):
    found = standings.same_or_smaller(rows, criterion, 100)
    np.testing.assert_allclose(found["lead"], lead)
    assert set(found["best other"]) == {"X at 20"}
    assert set(found["NFC is"]) == {tables.BEHIND}
    alone = tables.standing(tables.chosen(rows, criterion, 100), criterion)
    assert set(alone["NFC is"]) == {tables.AHEAD}
  text = sections.block(rows, trials_of("X", 100, [25.0]))
  assert "| X at 20: 28.50 | -1.00 (-1.00, -1.00) | behind |" in text


def trials_of(method, evaluations, psnr):
  return pd.DataFrame(
    [
      {"point": f"a={number}", "psnr": value, "lpips": 1 - value / 100}
      for number, value in enumerate(psnr)
    ]
  ).assign(method=method, evaluations=evaluations, task="box_inpainting")


def test_points_and_different_results_are_counted_by_search():
  """What diverged is one result, and so is what a knob does not change."""
  trials = pd.concat(
    [
      trials_of("X", 20, [25.0, 26.0, 25.0, -math.inf, -math.inf]),
      trials_of("X", 20, [25.0, 26.0]).assign(task="gaussian_blur"),
      trials_of("NFC, a", 20, [25.0, 26.0]),
    ]
  )
  found = tables.distinct(trials)
  assert [*found.loc[("X", 20, "box_inpainting")]] == [5, 3]
  text = sections.block(rows_of({"NFC, a": 27.0, "X": 25.0}), trials)
  assert "| X | 2 to 3 of 2 to 5 |" in text
  assert "| NFC, a | all of 2 |" in text


def test_winners_inside_are_counted_by_budget():
  rows = rows_of({"NFC, a": 27.0, "X": 25.0})
  edge = (rows["method"] == "X") & (rows["tuned for"] == "LPIPS")
  more = rows.assign(evaluations=100, interior=~edge)
  found = tables.interior(pd.concat([rows, more]))
  assert found.to_dict("index") == {
    20: {"inside": 8, "winners": 8},
    100: {"inside": 6, "winners": 8},
  }
  text = sections.block(pd.concat([rows, more]), trials_of("X", 20, [25.0]))
  assert "Of the 16 winners 14 lie inside" in text
  assert "8 of 8 at 20, 6 of 8 at 100 evaluations" in text


def test_winners_at_an_end_of_a_range_are_counted():
  """Once, whatever else they are; a score of its own has its own winner."""
  rows = rows_of({"DPIR": 25.0, "PiGDM": 26.0, "X": 20.0})
  inside = "weight=0.2, first=0.5"
  dpir = rows["method"] == "DPIR"
  rows.loc[dpir, "point"] = inside
  rows.loc[rows["method"] == "PiGDM", "point"] = "eta=1, data_std=16"
  text = sections.block(rows, trials_of("DPIR", 20, [25.0]))
  # Two operators of PiGDM, each with a winner for PSNR and one for LPIPS.
  assert "Of 4 winners a knob stands at an end of its range" in text
  rows.loc[dpir & (rows["task"] == "box_inpainting"), "point"] = (
    "weight=0.2, first=157"
  )
  text = sections.block(rows, trials_of("DPIR", 20, [25.0]))
  assert "Of 6 winners a knob stands at an end of its range" in text


def test_quality_has_wins_and_ranks_of_what_is_whole():
  rows = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 28.0})
  rows = rows[(rows["method"] != "Y") | (rows["operator"] != "box")]
  found = tables.quality(tables.chosen(rows, "PSNR", 20), "PSNR")
  np.testing.assert_allclose(found.loc["NFC, a", "wins"], 100)
  assert found.loc["X", "median rank"] == 2
  assert math.isnan(found.loc["Y", "median rank"])
  assert math.isnan(found.loc["Y", "box"])


def test_what_diverged_on_a_picture_has_no_mean(tmp_path):
  """Neither in the tables nor in the report, and others keep theirs."""
  rows = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 28.0})
  lost = (rows["method"] == "Y") & (rows["picture"] == "02")
  rows.loc[lost & (rows["operator"] == "box"), ["psnr", "lpips"]] = math.nan
  found = tables.quality(tables.chosen(rows, "PSNR", 20), "PSNR")
  assert math.isnan(found.loc["Y", "box"])
  assert math.isnan(found.loc["Y", "median rank"])
  assert found.loc["Y", "motion, short"] == 28.5
  assert found.loc["X", "box"] == 25.5
  trials = rows[["method", "evaluations", "task", "psnr"]]
  with record.Run(tmp_path / "run", command=["here"], config={}) as run:
    report.write(run, rows, trials, pd.DataFrame(), "two pictures")
  text = (tmp_path / "run/report.html").read_text()
  assert "28.50" in text and "28.00" not in text


@pytest.mark.parametrize("method", ["NFC, a", "X"])
def test_a_part_without_nfc_or_without_others_has_a_report(method, tmp_path):
  rows = rows_of({method: 27.0})
  trials = rows[["method", "evaluations", "task", "psnr"]]
  with record.Run(tmp_path / "run", command=["here"], config={}) as run:
    report.write(run, rows, trials, pd.DataFrame(), "two pictures")
  assert "27.50" in (tmp_path / "run/report.html").read_text()


def test_committed_rows_are_packed_and_read_again(tmp_path):
  rows = rows_of({"NFC, a": 27.0, "X": 25.0})
  rows["picture"] = rows["picture"].replace("02", "a b's")
  tables.packed(rows).to_csv(tmp_path / "rows.csv", index=False)
  found = tables.read(tmp_path / "rows.csv")
  pd.testing.assert_frame_equal(
    found[list(rows)], rows, check_dtype=False, rtol=1e-5
  )


def test_committed_points_are_packed_and_read_again(tmp_path):
  """In their order, what has no score among them."""
  trials = pd.concat(
    [
      trials_of("X", 20, [25.0, -math.inf]).assign(lpips=[0.75, math.inf]),
      trials_of("Y", 100, [26.0]).assign(point="b=0.25, c=1e-05"),
      trials_of("X", 100, [27.5, 24.0]),
    ],
    ignore_index=True,
  )
  file = tmp_path / "trials.csv"
  tables.packed_trials(trials).to_csv(file, index=False)
  assert len(file.read_text().splitlines()) == 1 + 3
  again = tables.read_trials(file)
  pd.testing.assert_frame_equal(again[trials.columns], trials)


def test_the_report_begins_with_the_plane_of_both_scores(tmp_path):
  rows = rows_of({"NFC, a": 27.0, "X": 25.0})
  trials = rows[["method", "evaluations", "task", "psnr"]]
  with record.Run(tmp_path / "run", command=["here"], config={}) as run:
    failed = pd.DataFrame([{"method": "Y", "error": "ValueError: too long"}])
    report.write(run, rows, trials, failed, "two pictures")
  text = (tmp_path / "run/report.html").read_text()
  assert text.index("<img") < text.index("<table")
  assert "ValueError: too long" in text
  found = tables.plane(rows, "LPIPS")
  np.testing.assert_allclose(found.loc[("X", 20)], [25.5, 0.745])


def test_points_without_a_score_are_counted():
  rows = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 25.0})
  trials = rows[["method", "evaluations", "task", "psnr", "lpips", "point"]]
  trials = trials.assign(
    psnr=trials["psnr"].where(trials["method"] != "X", -math.inf)
  )
  text = sections.block(rows, trials)
  assert "which were refused or diverged: X 8 of 8.\n" in text


def test_what_diverged_by_one_score_keeps_the_other():
  rows = rows_of({"NFC, a": 27.0, "X": 25.0})
  lost = (rows["method"] == "X") & (rows["operator"] == "box")
  lost &= rows["tuned for"] == "LPIPS"
  rows.loc[lost, ["psnr", "lpips"]] = math.nan
  text = sections.block(rows, trials_of("X", 20, [25.0]))
  assert "| X | 25.50 / .745 | 25.50 / diverged |" in text


def test_a_budget_of_means_alone_has_no_tables_of_single_samples():
  rows = rows_of({"NFC, a": 27.0, "X": 25.0})
  means = rows.assign(evaluations=40, chains=2)
  text = sections.block(pd.concat([rows, means]), trials_of("X", 20, [25.0]))
  own = text.split("## 40 evaluations")[1].split("## What")[0]
  assert own.strip().startswith("PSNR / LPIPS of the mean of 2 chains of 20")


def test_the_page_says_what_the_tuned_settings_give():
  """Those of each score by that score, at the budgets that were searched."""
  a, b = "NFC, fast()", "NFC, perceptual()"
  rows = rows_of({a: 26.0, b: 27.0, "X": 25.0})
  trials = [trials_of(a, 20, [1.0, 30.0]), trials_of(b, 20, [1.0, 29.0])]
  text = sections.block(rows, pd.concat(trials))
  table = text.split("`NFCConfig.tuned` gives for either score")[1]
  assert "| 20 | - | 26.50 / .735 |" in table


def test_what_ships_is_the_best_on_the_pictures_that_are_tuned_on():
  """The preset too: b is better on the report's pictures, a is chosen."""
  a, b = "NFC, fast()", "NFC, perceptual()"
  rows = rows_of({a: 26.0, b: 27.0, "X": 25.0})
  trials = pd.concat(
    [
      trials_of(a, 20, [30.0]).assign(point="a=1"),
      trials_of(b, 20, [29.0]).assign(point="a=1"),
      # No winner, whatever it scored: of the criterion it is tuned for.
      trials_of(b, 20, [31.0]).assign(point="a=2"),
      trials_of("X", 20, [33.0]).assign(point="a=1"),
    ]
  )
  found = json.loads(shipped.made(rows, trials))
  for score in tables.SCORES:
    assert found[score]["20"] == {"box_inpainting": {"preset": "fast", "a": 1}}
    beside = shipped.beside_others(rows, trials, score, 20)
    assert set(beside["method"]) == {a, "X"}
