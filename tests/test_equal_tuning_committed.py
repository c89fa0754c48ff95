"""Equal tuning: what is committed of it, rows, points, page and asset."""

import functools
import math

import numpy as np
import pandas as pd
import pytest

from experiments.equal_tuning import methods, tables
from experiments.equal_tuning.page import shipped, written
from experiments.equal_tuning.rounds import Rounds
from experiments.harness import paired
from posterior_jax import baselines
from posterior_jax.nfc_sampler import tuned

# Parsed once: that takes as long as what is asked of them.
committed = functools.cache(tables.read)
tried = functools.cache(tables.read_trials)


def test_what_is_committed_is_tied_to_the_best_point_that_was_tried():
  """Every winner is the best of its log; inside says what the log says."""
  rows, trials = committed(), tried()
  about = ["method", "evaluations", "task"]
  logs = {key: own for key, own in trials.groupby(about)}
  single = rows[rows["chains"] == 1]
  winners = single.drop_duplicates([*about, "kernel", "tuned for"])
  assert len(winners) > 600
  for _, row in winners.iterrows():
    log = logs[tuple(row[about])]
    column, _, high = tables.SCORES[row["tuned for"]]
    best = log[column].max() if high else log[column].min()
    own = log[log["point"] == row["point"]]
    np.testing.assert_allclose(own[column], best, atol=1e-9)
    assert bool(row["interior"]) == inside(row, log), tuple(row[about])


def test_means_are_of_the_winners_of_the_budget_before():
  """Each of what was tuned for the same score."""
  rows = committed()
  several = rows[rows["chains"] > 1].drop_duplicates(
    ["method", "evaluations", "task", "kernel", "tuned for"]
  )
  assert set(several["evaluations"]) == {100, 1000}
  before = functools.cache(functools.partial(tables.chosen, rows))
  for _, row in several.iterrows():
    own = before(row["tuned for"], row["evaluations"] // row["chains"])
    same = (own["method"] == row["method"]) & (own["task"] == row["task"])
    assert set(own[same]["point"]) == {row["point"]}


# What the searches of a budget began from: the winners of another among its
# first points, after which some went on.
BEGAN = {50: (20, 72), 100: (20, 48), 200: (100, 54), 1000: (100, 30)}
# These came when the others were done: each budget from the one before.
LATER = (
  "FAST-DIPS",
  "NFC, fast()",
  "NFC, perceptual() in passes",
  "NFC, guided() in passes",
)
LAST = {50: (20, 72), 100: (50, 36), 200: (100, 54), 1000: (200, 36)}


def test_every_search_began_from_a_winner_of_a_smaller_budget():
  logs = dict([*tried().groupby(["method", "task", "evaluations"])])
  for (method, task, calls), log in logs.items():
    if calls == 20:
      continue
    budget, points = (LAST if method in LATER else BEGAN)[calls]
    before = logs[method, task, budget].iloc[:points]
    # As rounded in the file several may be the best.
    best = before["psnr"] == before["psnr"].max()
    best |= before["lpips"] == before["lpips"].min()
    assert log["point"].iloc[0] in set(before["point"][best]), (method, task)


def inside(row, log):
  """Whether the log has points on both sides of a winner, or a knob ends."""
  knobs = methods.METHODS[row["method"]].knobs(row["evaluations"])
  tried = np.array([numbers(point) for point in log["point"]])
  winner = numbers(row["point"])
  for i, knob in enumerate(knobs):
    others = np.delete(tried == winner, i, axis=1)
    line = tried[others.all(axis=1), i]
    for side in (-1, 1):
      beyond = (side * (line - winner[i]) > 0).any()
      ends = math.isclose(knob._replace(start=winner[i]).at(side), winner[i])
      if not (beyond or ends):
        return False
  return True


def numbers(point):
  return [float(part.split("=")[1]) for part in point.split(", ")]


def test_methods_were_tuned_by_as_many_points():
  """Fewer only where nothing is left to try, as of MMPS's one knob."""
  most = {20: 72, 50: 36, 100: 54, 200: 36, 1000: 36}
  short = set()
  for (method, calls, _), log in tried().groupby(tables.SEARCH):
    assert len(log) <= most[calls]
    if len(log) == most[calls]:
      continue
    short.add(method)
    knobs = methods.METHODS[method].knobs(calls)
    points = [tuple(numbers(point)) for point in log["point"]]
    search = Rounds(knobs, points[:1] * 2)
    for point, psnr, lpips in zip(points, log["psnr"], log["lpips"]):
      search.add(point, (psnr, -lpips))
    assert search.propose(1, closing=True) == []
  assert short == {"MMPS", "PiGDM", "DDRM"}


@pytest.mark.parametrize(
  ("method", "config"),
  [
    ("AdamDPS", baselines.AdamDPSConfig),
    ("FAST-DIPS", baselines.FASTDIPSConfig),
  ],
)
def test_a_tuned_setting_has_the_medians_of_its_winners(method, config):
  """By PSNR at 100 evaluations, one for each task, as `tuned` says."""
  rows = tables.chosen(committed(), "PSNR", 100)
  own = rows[rows["method"] == method].drop_duplicates("task")
  assert len(own) == 5
  medians = np.median([numbers(point) for point in own["point"]], axis=0)
  knobs = methods.METHODS[method].knobs(100)
  found = [getattr(config.tuned(), knob.name) for knob in knobs]
  np.testing.assert_allclose(found, medians, rtol=1e-3)


def test_the_page_is_made_of_the_committed_rows():
  text = written.PAGE.read_text()
  block = text.split(written.BEGIN)[1].split(written.END)[0]
  assert block.strip() == written.made(committed(), tried()).strip()


@pytest.mark.parametrize(
  ("score", "ahead", "behind", "words"),
  [
    ("PSNR", {0.11}, {0.10}, "0.11 dB above 20 in the box, 0.10 below on the"),
    ("LPIPS", {0.022, 0.030, 0.037}, set(), "in LPIPS 0.022 to 0.037 better"),
  ],
)
def test_what_is_written_of_100_evaluations_beside_20_is_in_the_rows(
  score, ahead, behind, words
):
  column, digits, high = tables.SCORES[score]
  few, many = (
    shipped.beside_others(committed(), tried(), score, calls)
    for calls in (20, 100)
  )
  found = {"ahead": set(), "behind": set()}
  for operator in tables.NAMES.values():
    one, two = (
      own[own["method"].str.startswith("NFC") & (own["operator"] == operator)]
      .set_index("picture")[column]
      .sort_index()
      for own in (few, many)
    )
    gain, low, top = paired.interval(((two - one) * (2 * high - 1)).to_numpy())
    if low > 0 or top < 0:
      verdict = "ahead" if low > 0 else "behind"
      found[verdict].add(round(abs(gain), digits))
  assert found == {"ahead": ahead, "behind": behind}
  assert words in " ".join(written.PAGE.read_text().split())


@pytest.mark.parametrize(
  ("form", "calls", "least", "most", "words"),
  [
    ("perceptual", 20, 0.00, 0.19, "gains 0.01 to 0.19 dB at 20 evaluations"),
    ("perceptual", 1000, 0.08, 0.72, "and 0.08 to 0.72 at 1000"),
    ("guided", 100, 0.12, 0.59, "0.12 to 0.59 at 100"),
    ("guided", 1000, 0.37, 1.45, "and 0.37 to 1.45 at 1000"),
  ],
)
def test_what_is_written_of_passes_is_in_the_rows(
  form, calls, least, most, words
):
  rows = tables.chosen(committed(), "PSNR", calls)
  mean = rows.groupby(["method", "operator"])["psnr"].mean().unstack()
  gain = mean.loc[f"NFC, {form}() in passes"] - mean.loc[f"NFC, {form}()"]
  assert (round(gain.min(), 2), round(gain.max(), 2)) == (least, most)
  assert words in " ".join(written.PAGE.read_text().split())


@functools.cache
def verdicts(score, calls, own):
  """Of NFC's best form at a budget, or of its `own`, that `tuned` gives."""
  rows = (
    shipped.beside_others(committed(), tried(), score, calls)
    if own
    else tables.chosen(committed(), score, calls)
  )
  return tables.standing(rows, score)["NFC is"]


def counts(score, verdict, own):
  """On how many operators, by budget."""
  return [
    int((verdicts(score, calls, own) == verdict).sum())
    for calls in (20, *BEGAN)
  ]


def test_what_the_readme_and_the_changelog_claim_is_in_the_rows():
  """On how many operators NFC is ahead at each budget, of ten kernels too."""

  best, one = (
    {score: counts(score, tables.AHEAD, own) for score in tables.SCORES}
    for own in (False, True)
  )
  slashed = lambda c: " / ".join(map(str, c))  # noqa: E731
  listed = lambda c: f"{', '.join(map(str, c[:-1]))} and {c[-1]}"  # noqa: E731
  readme = (written.ROOT / "README.md").read_text()
  words = f"ahead of all on {slashed(best['PSNR'])}, behind DPIR on two at 20"
  assert words in readme
  assert counts("PSNR", tables.BEHIND, False) == [2, 0, 0, 0, 0]
  assert f"LPIPS: ahead on {slashed(best['LPIPS'])}, else level" in readme
  words = f"PSNR {slashed(one['PSNR'])}, as often behind, LPIPS "
  words += f"{slashed(one['LPIPS'])}, behind on one at 100"
  assert f"by `NFCConfig.tuned` {words}" in readme
  log = " ".join((written.ROOT / "CHANGELOG.md").read_text().split())
  assert f"ahead of all in PSNR on {listed(best['PSNR'])} of seven" in log
  assert f"in LPIPS ahead on {listed(best['LPIPS'])} and behind" in log
  assert f"gives is ahead in LPIPS on {listed(one['LPIPS'])}." in log
  ten = written.PAGE.read_text().split("## Ten motion kernels")[1]
  few, many = (
    ten.split(f"| LPIPS, {calls} | best | ")[1].split(" / ")[0]
    for calls in (20, 100)
  )
  assert (
    f"ahead in LPIPS on {few} at 20 evaluations and on {many} at 100" in log
  )


def test_verdicts_that_hold_together_are_of_all_comparisons_of_a_column():
  """One sample of NFC's best form at the same budget, both scores."""
  whole = pd.concat(
    tables.standing(tables.chosen(committed(), score, calls), score)
    for score in tables.SCORES
    for calls in (20, *BEGAN)
  )
  told = {
    words: line.split(" | ")[1]
    for words in ("all of these", "all, by Holm's method")
    for line in written.PAGE.read_text().splitlines()
    if line.startswith(f"| {words} | ")
  }
  held = paired.hold(whole["chance"].to_numpy())
  for words, among in (
    ("all of these", whole),
    ("all, by Holm's method", whole[held]),
  ):
    ahead, _, behind = map(int, told[words].split(" / "))
    assert ahead == (among["NFC is"] == tables.AHEAD).sum()
    assert behind == (among["NFC is"] == tables.BEHIND).sum()
  ahead = (whole["NFC is"] == tables.AHEAD).to_numpy()
  words = f"{(ahead & held).sum()} of the {ahead.sum()} leads hold together"
  assert words in " ".join(written.PAGE.read_text().split())
  assert words in (written.ROOT / "README.md").read_text()
  # No more can hold than stand alone, and none that chance explains.
  assert set(whole["NFC is"][held]) <= {tables.AHEAD, tables.BEHIND}
  assert whole["chance"][held].max() <= 0.05 / (len(whole) - held.sum() + 1)


def test_what_ships_is_made_of_the_committed_points():
  assert tuned.ASSET.read_text() == shipped.made(committed(), tried())


def test_the_table_in_short_is_in_the_rows():
  text = written.PAGE.read_text()
  for score in tables.SCORES:
    for words, own in (
      (f"{score}: NFC's best form", False),
      ("what `NFCConfig.tuned` gives", True),
    ):
      both = (counts(score, v, own) for v in (tables.AHEAD, tables.BEHIND))
      cells = (f"{ahead} / {behind}" for ahead, behind in zip(*both))
      line = f"| {words} is ahead on / behind on | {' | '.join(cells)} |"
      assert line in text
