"""Priors beside one another and beside other denoisers, over a folder."""

import functools
import pathlib
import types

import numpy as np
import pandas as pd
import PIL.Image
from absl import app, flags
from absl.testing import flagsaver

from experiments import prior_gain
from experiments.data import photographs
from posterior_jax import priors
from tests.oracles import refused

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs/benchmarks"
SHOWN = {
  "large": '`photo_prior("large")`',
  "small": "`photo_prior()`",
  "BM3D": "BM3D",
  "FFDNet": "FFDNet",
}
SIGMAS = 15, 25, 50


def test_gain_of_a_prior_over_a_folder(tmp_path, monkeypatch, capsys):
  """Of three answers whose errors are known: twice the error is 6.02 dB."""
  folder = tmp_path / "pictures"
  folder.mkdir()
  for number in range(2):
    pixels = np.random.default_rng(number).integers(60, 190, (256, 300, 3))
    picture = PIL.Image.fromarray(pixels.astype(np.uint8))
    picture.save(folder / f"{number}.png")
  config = priors.UNetConfig()
  both = {
    name: types.SimpleNamespace(config=config, error=error)
    for name, error in (("mine.json", 1), ("", 2))
  }
  monkeypatch.setattr(prior_gain.prior_files, "load", both.get)

  def learned(prior, y, sigma):
    noise = y - truths.pop(0)
    # The noise has variance sigma^2, the same for all.
    assert abs(noise.std() / sigma - 1) < 0.01
    return y - noise + 0.01 * prior.error

  crops = [
    photographs.crops(folder / f"{i}.png", 256, 1)[0].astype(np.float64)
    for i in range(2)
  ]
  truths = crops * 3 * len(prior_gain.LEVELS)
  peer = functools.partial(learned, types.SimpleNamespace(error=4))
  monkeypatch.setattr(prior_gain.denoisers, "learned", learned)
  monkeypatch.setattr(prior_gain.denoisers, "peers", lambda: {"peer": peer})
  monkeypatch.setattr(prior_gain.denoisers, "left_out", lambda: ["No BM3D"])
  monkeypatch.chdir(tmp_path)
  pathlib.Path("mine.json").write_text("{}")  # it is named by its bytes
  flags.FLAGS.mark_as_parsed()
  intervals, interval = [], prior_gain.paired.interval
  monkeypatch.setattr(
    prior_gain.paired,
    "interval",
    lambda gains: intervals.append(1) or interval(gains),
  )
  with flagsaver.flagsaver(table="gain.csv", scores="scores.csv"):
    prior_gain.main(["", "pictures", "mine.json"])
  table = pd.read_csv("gain.csv")
  assert [*table["sigma"]] == [25] * 3 + [50] * 3 + [15] * 3
  assert len(intervals) == len(table)  # printed and written is the same one
  mine = "mine.json 44136fa3"
  pairs = [(mine, "small"), (mine, "peer"), ("small", "peer")] * 3
  assert [*zip(table["prior"], table["base"])] == pairs
  assert {*table["side"]} == {256} and {*table["pictures"]} == {2}
  scores = {mine: 46.02, "small": 40, "peer": 33.98}
  for name, score in ("prior", "psnr"), ("base", "base psnr"):
    np.testing.assert_allclose(table[score], table[name].map(scores), atol=0.01)
  np.testing.assert_allclose(table["gain"], [6.02, 12.04, 6.02] * 3, atol=0.01)
  every = pd.read_csv("scores.csv")
  assert [*every["picture"]] == ["0.png", "1.png"] * 9
  np.testing.assert_allclose(
    every["psnr"], every["method"].map(scores), atol=0.01
  )
  assert every.groupby(["sigma", "method"]).size().eq(2).all()
  said = capsys.readouterr().out.splitlines()
  assert len(said) == 10 and said[:2] == [
    "No BM3D",
    "sigma 25 of 255, 2 pictures: mine.json 44136fa3 46.02 dB, small 40.00, "
    "gain +6.02 [+6.02, +6.02], least +6.02",
  ]
  with refused(app.UsageError, "must hold pictures"):
    prior_gain.main(["", str(tmp_path / "none"), "mine.json"])
  with refused(app.UsageError, "one or two priors"):
    prior_gain.main(["", str(tmp_path)])
  with flagsaver.flagsaver(side=100):
    with refused(app.UsageError, "--side must be divisible by 8, got 100"):
      prior_gain.main(["", "pictures", "mine.json"])


def test_a_peer_without_its_weights_is_one_sentence(monkeypatch):
  def peers():
    raise ValueError("ffdnet_color.pth is truncated or changed")

  monkeypatch.setattr(prior_gain.denoisers, "peers", peers)
  small = types.SimpleNamespace(config=priors.UNetConfig())
  monkeypatch.setattr(prior_gain.prior_files, "load", lambda _: small)
  monkeypatch.setattr(prior_gain.photographs, "files_in", lambda _: [])
  flags.FLAGS.mark_as_parsed()
  with refused(app.UsageError, "ffdnet_color.pth is truncated or changed"):
    prior_gain.main(["", "pictures", ""])


def _rows():
  """What the command prints of the committed scores, by sigma and names."""
  every = pd.read_csv(ROOT / "experiments/prior_gain.csv")
  found = {}
  for sigma, own in every.groupby("sigma"):
    wide = own.pivot(index="picture", columns="method", values="psnr")
    assert len(wide) == 23 and not wide.isna().to_numpy().any()
    # As the page says of every picture.
    assert (
      wide[["large", "small"]].min(axis=1)
      > wide[["BM3D", "FFDNet"]].max(axis=1)
    ).all()
    answers = [prior_gain.Answers(m, wide[m].to_numpy()) for m in SHOWN]
    for pair in prior_gain.pairs(answers):
      row = prior_gain.row(256, sigma, *pair)
      found[sigma, row["prior"], row["base"]] = row
  return found


def test_pages_have_what_the_scores_say():
  """Means and gains of the section, and the gains that the claims name."""
  rows = _rows()
  assert {sigma for sigma, *_ in rows} == {*SIGMAS}
  text = (PAGES / "restoration.md").read_text().split("## Denoising")[1]
  table = [line for line in text.splitlines() if line.startswith("|")]
  means, gains = {}, {}
  for (sigma, *names), row in rows.items():
    for name, score in zip(names, ("psnr", "base psnr")):
      means.setdefault(name, {})[sigma] = f"{row[score]:.2f}"
    gains.setdefault(tuple(names), {})[sigma] = (
      f"{row['gain']:+.2f} ({row['from']:+.2f}, {row['to']:+.2f})"
    )
  expected = [
    f"| {' | '.join(SHOWN[name] for name in names)} | "
    f"{' | '.join(cells[sigma] for sigma in SIGMAS)} |"
    for names, cells in [((name,), own) for name, own in means.items()]
    + [*gains.items()]
  ]
  heads = [line for line in table if "sigma" in line or line.startswith("|---")]
  assert sorted(table) == sorted([*heads, *expected]) and len(heads) == 4
  claims = (PAGES / "index.md").read_text()
  for peer in ("FFDNet", "BM3D"):
    by = [f"{rows[sigma, 'small', peer]['gain']:+.2f}" for sigma in SIGMAS]
    assert f"{', '.join(by)} dB over {peer}" in claims
