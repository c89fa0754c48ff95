"""Equal tuning under another prior: its standings and its section."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from experiments.equal_tuning import other_prior, tables
from experiments.equal_tuning.page import prior_section, written
from experiments.harness import prior_files
from posterior_jax.priors import photo
from tests.test_equal_tuning_prior import SECOND
from tests.test_equal_tuning_tables import rows_of

FIRST = SECOND._replace(prior="small", parameters=5_300_000, photographs=69)


def second_of(psnr, about=SECOND):
  return rows_of(psnr).assign(prior=about.prior)


def test_both_standings_are_of_what_both_have():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 30.0, "Z": 20.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Z": 20.0})
  pair = other_prior.shared(first, second)
  for criterion, leads in (("PSNR", (2, -2)), ("LPIPS", (0.02, -0.02))):
    own = [tables.chosen(rows, criterion, 20) for rows in pair]
    found = other_prior.standing(*own, criterion)
    assert list(found.index) == ["motion, short", "box"]
    np.testing.assert_allclose(found["lead"], leads[0])
    np.testing.assert_allclose(found["lead 2"], leads[1])
    assert set(found["NFC is"]) == {tables.AHEAD}  # Y has no second row
    assert set(found["NFC is 2"]) == {tables.BEHIND}


def test_rows_of_another_point_are_not_compared():
  first = rows_of({"NFC, a": 27.0, "X": 25.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0})
  second.loc[second["method"] == "X", "point"] = "a=2"
  own, others = other_prior.shared(first, second)
  assert set(own["method"]) == set(others["method"]) == {"NFC, a"}


def test_ranks_are_compared_by_operator():
  """1, 2, 3 and 2, 1, 3: Spearman's correlation is a half."""
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0, "Z": 1.0})
  box = second["operator"] == "box"
  second.loc[box & (second["method"] == "X"), ["psnr", "lpips"]] = math.nan
  pair = other_prior.shared(first, second)
  for criterion in tables.SCORES:
    own = [tables.chosen(rows, criterion, 20) for rows in pair]
    found = other_prior.correlations(*own, criterion)
    # In the box X diverges under the second one: the worst of three.
    np.testing.assert_allclose(found["correlation"], 0.5)
    assert set(found["methods"]) == {3}
    assert [*found["same best"]] == [False, True]
  two = second[second["method"] != "Y"]
  own = other_prior.shared(first, two)
  assert not len(other_prior.correlations(*own, "PSNR"))


def sectioned(first, second, gain=None):
  about = {each.prior: each._asdict() for each in (FIRST, SECOND)}
  gain = pd.DataFrame() if gain is None else gain
  return prior_section.block(first, second, about, gain)


def test_the_section_says_which_prior_and_what_became_of_the_ranks():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  text = sectioned(first, second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0}))
  assert (
    "`small` (5.3 million parameters, trained on 69 photographs, 1201 steps in "
    "201 s on 1 gpu), are used as they are under a second one, "
    "`second 12345678` (1.8 million parameters, trained on 251 photographs"
  ) in text
  assert "denoises" not in text and "Not run" not in text
  row = "2 / 0 / 0 | 0 / 0 / 2 | 0 of 2 "
  row += "| 0 of 2 | 0.50 | 0.50 (motion, short) |"
  for criterion in tables.SCORES:
    assert f"| {criterion}, 20 | {row}" in text
  assert (
    "| box | first | NFC, a 27.50 | X 25.50 | +2.00 (+2.00, +2.00) "
    "| **ahead** |\n"
    "|  | second | NFC, a 26.50 | X 28.50 | -2.00 (-2.00, -2.00) | behind |"
  ) in text


def test_a_shipped_prior_that_has_other_weights_now_is_said_to():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0})
  about = {each.prior: each._asdict() for each in (FIRST, SECOND)}
  about[SECOND.prior] |= {"ships": False, "earlier": 300}
  text = prior_section.block(first, second, about, pd.DataFrame())
  words = "has been trained further since: the rows, and how it denoises here"
  assert words in text and words not in sectioned(first, second)
  assert "201 s on 1 gpu, after 300 steps of a training before)" in text


def test_the_committed_section_knows_its_priors_weights(page):
  told = json.loads(other_prior.ABOUT.read_text())["sha256"]
  words = "has been trained further since"
  assert (told != prior_files.sha256(prior_files.LARGE)) == (words in page)


def test_the_section_has_what_each_method_gains_and_loses():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = second_of({"NFC, a": 26.0, "X": 28.25, "Y": np.nan})
  text = sectioned(first, second)
  assert "| NFC, a | -1.00 / +.010 | -1.00 / +.010 |" in text
  assert "| X | +3.25 / -.032 | +3.25 / -.032 |" in text
  assert "| Y | diverged | diverged |" in text


def test_the_section_has_the_denoising_of_its_own_prior_alone():
  first = rows_of({"NFC, a": 27.0, "X": 25.0})
  second = second_of({"NFC, a": 26.0, "X": 28.0})
  about = {"base": "small", "pictures": 23, "side": 128, "base psnr": 31.59}
  gain = pd.DataFrame(
    [
      about | {"prior": SECOND.prior, "sigma": 25, "psnr": 30.11},
      about | {"prior": "third", "sigma": 50, "psnr": 26.8},
    ]
  )
  text = sectioned(first, second, gain)
  assert (
    "denoises 23 pictures of 128 x 128, at sigma 25 of 255 to 30.11 dB, the "
    "first to 31.59 (`python -m experiments.prior_gain KODAK "
    "second 12345678 --side=128`)."
  ) in text
  assert "sigma 50" not in text
  assert "denoises" not in sectioned(first, second, gain.iloc[1:])


def test_what_was_not_run_is_not_said_to_have_diverged():
  """Neither at another budget, nor of what was tuned for the other score."""
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  first = pd.concat([first, first.assign(evaluations=100)])
  second = first.assign(prior=SECOND.prior)
  few = second["evaluations"] == 20
  x, lpips = second["method"] == "X", second["tuned for"] == "LPIPS"
  box = second["operator"] == "box"
  text = sectioned(first, second[~(few & box & x) & ~(~few & box & x & lpips)])
  assert "diverged" not in text
  at_20, at_100 = text.split("**PSNR / LPIPS, ")[1:]
  assert "| X | +0.00 / +.000 | - |" in at_20
  assert "| X | +0.00 / +.000 | +0.00 / - |" in at_100


def test_winners_that_were_replaced_are_counted():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  second = first.assign(prior=SECOND.prior)
  assert "replaced since" not in sectioned(first, second)
  newer = first[(first["method"] == "X") & (first["tuned for"] == "PSNR")]
  text = sectioned(pd.concat([first, newer.assign(point="a=2")]), second)
  count = len(newer["task"].unique())
  assert f"{count} of the {2 * 3 * count} have been replaced since" in text


def test_the_section_says_what_was_not_run():
  first = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0, "Z": 20.0})
  more = first.assign(evaluations=100)
  second = second_of({"NFC, a": 26.0, "X": 28.0, "Y": 20.0})
  lost = (second["method"] == "Y") & (second["operator"] == "box")
  text = sectioned(pd.concat([first, more]), second[~lost])
  assert "Not run under it at 20 evaluations: Y on box; Z.\n" in text
  assert "100 evaluations" not in text
  text = sectioned(first, second[second["operator"] != "box"])
  assert "20 evaluations: anything on box; Z.\n" in text


@pytest.fixture(scope="module")
def change():
  """Mean PSNR under the large prior less that under the small one."""
  first = other_prior.with_base(tables.read())
  both = other_prior.shared(first, tables.read(other_prior.ROWS))
  one, two = (
    rows[rows["tuned for"] == "PSNR"]
    .groupby(["method", "evaluations", "operator"])["psnr"]
    .agg(tables.mean)
    for rows in both
  )
  return (two - one).dropna()


@pytest.fixture(scope="module")
def page():
  return " ".join(written.PAGE.read_text().split())


def test_what_is_written_of_the_large_prior_is_in_the_rows(change, page):
  """Sentences beside the tables, which no command writes."""
  method, calls, on = (change.index.get_level_values(i) for i in range(3))
  motion = on.str.startswith("motion")
  wide = on == "super-resolution x4"
  ends = lambda x: f"{x.min():.2f} to {x.max():.2f}"  # noqa: E731
  gaining = ["NFC, perceptual()", "NFC, calibrated()", "NFC, by ODE"]
  gaining += ["NFC, perceptual() in passes"]
  gains = change[motion & method.isin([*gaining, "DDNM+", "DiffPIR"])]
  assert f"NFC by ODE gain {ends(gains)} dB on motion blur" in page
  quiet = method.isin(["NFC, fast()", "DPIR"])
  assert "lose on Gaussian blur and super-resolution, at 100 on" in page
  assert change[quiet & ((on == "Gaussian blur") | wide)].max() < 0
  lost = change[wide & (calls == 100)].xs(100, level="evaluations")
  assert "on the latter 2.2 and 3.4 dB, and DPIR in the box 9 to 11" in page
  assert round(lost["NFC, fast()"].item(), 1) == -2.2
  assert round(lost["DPIR"].item(), 1) == -3.4
  assert change["NFC, fast()"][lambda x: x < -0.25].size == 1
  assert {*change[(method == "DPIR") & (on == "box")].round()} == {-9, -10, -11}
  ends = [f(change["NFC, perceptual()"]) for f in (min, max)]
  changes = "changes by {:.2f} to {:.2f} dB".format(*ends)
  limits = written.PAGE.parents[1] / "limits.md"
  for text in (limits.read_text(), photo.photo_prior.__doc__):
    assert changes in " ".join(text.split())
    assert "0.2 dB on blurs and 2.2 on super" in " ".join(text.split())
  assert change["NFC, fast()"][~wide[method == "NFC, fast()"]].min() > -0.25


def test_what_is_written_of_losses_at_few_evaluations_is_in_the_rows(
  change, page
):
  few = change.xs(20, level="evaluations")
  for name, words, least, most, digits in (
    (
      "NFC, restoration()",
      "`restoration()` loses too (0.2 to 0.6",
      0.2,
      0.6,
      1,
    ),
    ("PiGDM", "PiGDM (0.2 to 0.5)", 0.2, 0.5, 1),
    ("MMPS", "MMPS (0.2 to 0.4)", 0.2, 0.4, 1),
    ("AdamDPS", "AdamDPS (up to 5.6)", 0.0, 5.6, 1),
    ("DPS", "DPS (2 to 8) do", 2, 8, 0),
  ):
    assert words in page
    lost = -few[name].round(digits)
    assert (lost.min(), lost.max()) == (least, most)
  assert "SITCOM on super-resolution and masks (1.5 to 1.6)" in page
  masks = ["super-resolution x4", "random 70 %", "box"]
  assert {*few["SITCOM"][masks].round(1)} == {-1.5, -1.6}


def test_the_page_has_the_section_where_there_are_rows(tmp_path, monkeypatch):
  for name in ("ROWS", "ABOUT", "GAIN", "BASE"):
    path = tmp_path / getattr(other_prior, name).name
    monkeypatch.setattr(other_prior, name, path)
  monkeypatch.setattr(tables, "KERNELS", tmp_path / "kernel_rows.csv")
  monkeypatch.setattr(written, "block", lambda *_: "the tables")
  rows, trials = tables.read(), pd.DataFrame()
  assert written.made(rows, trials) == "the tables"
  own = rows[(rows["chains"] == 1) & (rows["evaluations"] == 20)]
  second = own.assign(prior=SECOND.prior, psnr=own["psnr"] - 1)
  tables.packed(second).to_csv(other_prior.ROWS, index=False)
  other_prior.ABOUT.write_text(json.dumps(SECOND._asdict()))
  page = written.made(rows, trials)
  before, text = page.split("## Under another prior")
  assert before == "the tables\n\n"
  row = "| PSNR, 20 | 4 / 1 / 2 | 4 / 1 / 2 | 7 of 7 | 7 of 7 | 1.00 |"
  assert row in text


def test_committed_rows_of_a_second_prior_are_by_the_winners():
  """Every one by the point, and of the picture, of a committed row.

  Or of one whose point a longer search has replaced, of which there are no
  others.
  """
  rows, second = tables.read(), tables.read(other_prior.ROWS)
  _, found = other_prior.shared(other_prior.with_base(rows), second)
  assert len(found) == len(second)
  _, today = other_prior.shared(rows, second)
  assert len(today) + len(tables.read(other_prior.BASE)) == len(second)
  (name,) = other_prior.names(second)
  assert json.loads(other_prior.ABOUT.read_text())["prior"] == name
