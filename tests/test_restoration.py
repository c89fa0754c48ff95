"""The restoration benchmark: its cases, rows, tables, report and resumption."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import posterior_jax as pj
from experiments import tune_samplers
from experiments.data import degradations, photographs
from experiments.data.degradations import FROZEN, Degradation
from experiments.harness import command_line, runner
from experiments.harness.reporting.tables import frame
from experiments.harness.subjects import samplers, scores
from experiments.restoration import report, runs, setup, study, tables
from posterior_jax.operators import frozen
from tests import test_perceptual
from tests.oracles import quick_jit, refused

CONFIG = command_line.CONFIGS / "restoration.py:debug"


def _run(folder, *flags):
  argv = ["restoration", f"--config={CONFIG}", f"--workdir={folder}", *flags]
  argv.append("--config.tasks=('box inpainting',)")  # robustness has the other
  runner.main(
    "restoration",
    study.Settings,
    study.restore,
    argv,
    prepare=setup.prepare,
    inputs=setup.inputs,
    resumable=True,
  )


def _rows(folder):
  text = (folder / "restoration.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("restoration") / "run"
  _run(folder)
  return folder


def test_run_leaves_rows_pictures_and_report(finished):
  rows = _rows(finished)
  assert not any(row["note"] for row in rows)
  assert {row["method"] for row in rows} == {"NFC", "MMPS"}
  for row in rows:
    assert row["calls"] == 5
    # Below 20 levels NFC takes up to 20 iterations each.
    most = 100 if row["method"] == "NFC" else 5
    assert 5 <= row["products"] <= most
    assert row["psnr"] > 10 and 0 < row["ssim"] < 1
  text = (finished / "report.html").read_text()
  assert "<script" not in text and text.count("<figure>") == 1
  for name in ("psnr-5", "psnr_mean-5", "seconds-psnr", "robustness", "papers"):
    assert f'id="{name}"' in text
  assert (finished / "pictures/box inpainting, NFC tuned 5.png").exists()


def test_resume_runs_what_is_missing_only(finished):
  """Rows of one photograph are cut off: they come back the same."""
  before = _rows(finished)
  for name in ("restoration.jsonl", "restoration.csv"):
    lines = (finished / name).read_text().splitlines(keepends=True)
    (finished / name).write_text("".join(lines[:-1]))
  _run(finished, "--resume")
  after = tables.latest(frame(_rows(finished))).to_dict("records")
  assert len(after) == len(before)
  key = ("part", "task", "kernel", "assumed", "method")
  there = {tuple(row[k] for k in key): row["psnr"] for row in after}
  assert there == {tuple(row[k] for k in key): row["psnr"] for row in before}


# --- cases --------------------------------------------------------------------


@pytest.mark.parametrize("case", FROZEN, ids=str)
def test_frozen_cases(case):
  """At 256 the frozen data themselves, seen by the operator on a photograph."""
  operator = degradations.frozen_operator(case, (256, 256, 3))
  assert operator.image_shape == (256, 256, 3)
  if case.task == "motion_blur":
    expected = frozen.motion_kernel(case.kernel)
    assert np.array_equal(operator.kernel, expected)
  if case.task == "random_inpainting":
    assert np.array_equal(operator.mask[..., 0], frozen.random_mask())
  if case.task == "box_inpainting":
    row, column = frozen.box_corner()
    hole = np.asarray(operator.mask)[row : row + 128, column : column + 128]
    assert hole.max() == 0 and operator.mask.sum() == 256**2 - 128**2


def test_assumptions_change_one_thing_only():
  truth = jnp.zeros((1, 64, 64, 3))
  seen = degradations.measure(
    Degradation("motion_blur", "short"), truth, 0.05, 0
  )
  half = runs.assume(seen.observation, runs.HALF_NOISE)
  assert half.noise_std == 0.025 and half.operator is seen.observation.operator
  turned = runs.assume(seen.observation, "kernel turned by 15 degrees")
  kernel, other = seen.observation.operator.kernel, turned.operator.kernel
  assert turned.noise_std == 0.05 and turned.y is seen.observation.y
  assert abs(float(other.sum()) - 1) < 1e-6
  assert float(jnp.abs(kernel - other).max()) > 0.1 * float(kernel.max())


def test_photographs_are_verified(tmp_path, monkeypatch):
  photographs.verify((*photographs.HELD_OUT, *photographs.TUNING))
  other = tmp_path / "other.png"
  PIL.Image.new("RGB", (300, 300)).save(other)
  monkeypatch.setattr(photographs, "path", lambda name: other)
  with refused(ValueError, "chelsea is not the photograph of the reports"):
    photographs.verify(("chelsea",))


def test_pictures_of_a_folder(tmp_path):
  with refused(ValueError, "must hold pictures, it holds none"):
    photographs.from_folder(str(tmp_path), 64)
  with refused(ValueError, "photographs '' must hold pictures"):
    photographs.from_folder("", 64, named="photographs")
  left = np.zeros((64, 128, 3), np.uint8)
  left[:, :64] = 255  # of the centre square only the left half
  PIL.Image.fromarray(left).save(tmp_path / "a.png")
  found = photographs.from_folder(str(tmp_path), 32)["a.png"]
  assert np.array_equal(found[:, :16], np.ones((32, 16, 3)))
  assert np.array_equal(found[:, 16:], -np.ones((32, 16, 3)))


# --- rows and tables ----------------------------------------------------------


def test_scores_against_numpy():
  rng = np.random.default_rng(0)
  truth = rng.uniform(-0.5, 0.5, (2, 16, 16, 1)).astype(np.float32)
  noise = rng.normal(0, 0.1, (3, 2, 16, 16, 1)).astype(np.float32)
  operator = pj.operators.random_inpainting((16, 16, 1))
  observation = pj.Observation(operator.forward(truth), operator, 0.1)
  samples = jnp.asarray(truth + noise)
  rows = scores.evaluate(samples, observation, jnp.asarray(truth))

  def psnr(error):
    return -10 * np.log10((error.astype(float) ** 2).mean((-3, -2, -1)) / 4)

  for i, row in enumerate(rows):
    assert abs(row["psnr"] - psnr(noise[:, i]).mean()) < 1e-3
    assert abs(row["psnr_mean"] - psnr(noise.mean(0)[i])) < 1e-3
    spread = np.sqrt(noise[:, i].var(0, ddof=1).mean())
    assert abs(row["spread"] / spread - 1) < 1e-4
    seen = np.asarray(operator.mask[..., 0] == 1)
    residual = (noise[:, i][:, seen] ** 2).mean() / 0.01
    assert abs(row["residual"] / residual - 1) < 1e-4


def _row(method, setting, budget, psnr, seconds=1.0, kernel="short"):
  program = runs.Program("methods", method, setting, (), budget)
  found = program.row(Degradation("motion_blur", kernel), "", photograph="cat")
  return found | {"psnr": psnr, "seconds": seconds}


def test_tables_average_over_kernels_and_choose_by_seconds():
  rows = frame(
    [
      _row("NFC", "tuned", 10, 30.0, 2.0),
      _row("NFC", "tuned", 10, 28.0, 2.0, "long"),
      _row("DPS", "tuned", 10, 29.5, 6.0),
      _row("DPS", "tuned", 5, 27.0, 2.0),
      _row("DAPS", "published", 0, 26.0, 1.0),
    ]
  )
  nfc = ("NFC", "tuned", "", 10)
  assert tables.by_task(rows, "psnr").loc[nfc, "motion blur"] == 29.0
  within = set(tables.within(rows, 2.0)[tables.WHO].itertuples(index=False))
  assert ("DPS", "tuned", "", 5) in within and nfc in within
  assert ("DPS", "tuned", "", 10) not in within
  (line,) = tables.standing(rows, "psnr", "tuned", 10).to_dict("records")
  assert line["best baseline"] == "DPS tuned" and line["lead [dB]"] == -0.5
  assert report.behind(line["lead [dB]"])
  assert tables.over_daps(rows, 10) == 3.0


def test_calls_are_told_of_methods_that_refuse_a_task():
  done = _row("DDRM", "tuned", 10, 30.0) | {"task": "box_inpainting"}
  rows = [done | {"calls": 10, "products": 0}, _row("DDRM", "tuned", 10, None)]
  (line,) = tables.quality(frame(rows), "psnr").to_numpy().tolist()
  _, calls, products, *psnr = line
  assert (calls, products) == (10, 0)
  missing = [None if np.isnan(value) else value for value in psnr]
  assert missing == [None, 30.0, None, None, None, None]


def test_remaining_counts_every_case():
  cases = (
    Degradation("motion_blur", "short"),
    Degradation("motion_blur", "long"),
  )
  program = runs.Program("methods", "NFC", "tuned", cases, 10)
  rows = [_row("NFC", "tuned", 10, 30.0)]
  assert runs.remaining([program], rows, 1) == [program]
  rows.append(_row("NFC", "tuned", 10, 30.0, kernel="long"))
  assert runs.remaining([program], rows, 1) == []
  assert runs.remaining([program], rows, 2) == [program]


def test_a_failing_method_leaves_a_note(monkeypatch):
  def fail(config, spectrum):
    raise RuntimeError("no luck")

  broken = samplers.METHODS["NFC"]._replace(build=fail)
  monkeypatch.setitem(samplers.METHODS, "NFC", broken)
  prior = degradations.build_prior(64)
  shared = setup.Setup(
    ("cat",), jnp.zeros((1, 64, 64, 3)), prior.denoise, prior.spectrum, 0.1, 0
  )
  program = runs.Program("methods", "NFC", "tuned", FROZEN[:1], 2)
  ((row,),) = runs.run_all([program], shared, workers=1)
  assert row["note"] == "failed, RuntimeError: no luck" and row["psnr"] is None
  assert "no luck" in tables.failures(frame([row]))[0]


def test_lpips_is_told_where_its_weights_are_given():
  distance = pj.metrics.load_lpips(test_perceptual.FIXTURES / "alex.pt")
  truth = jnp.asarray(photographs.load("chelsea", 64))[None]
  operator = pj.operators.box_inpainting(truth.shape[1:], size=8)
  observation = pj.Observation(truth, operator, 0.1)
  samples = jnp.stack([0.9 * truth, 0.5 * truth])
  ((row,), (without,)) = (
    scores.evaluate(samples, observation, truth, weights)
    for weights in (distance, None)
  )
  distances = quick_jit(lambda x: distance(x, truth))
  each = [float(distances(x)[0]) for x in samples]
  assert row["lpips"] == pytest.approx(np.mean(each), rel=1e-4)
  assert row["lpips_mean"] == pytest.approx(
    float(distances(samples.mean(0))[0]), rel=1e-4
  )
  assert without["lpips"] is None and without["lpips_mean"] is None
  assert without["psnr"] == row["psnr"]


def test_flip_is_of_a_sample_and_of_the_mean_in_colour():
  truth = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
  observation = pj.Observation(
    truth, pj.operators.random_inpainting((16, 16, 3)), 0.1
  )
  samples = jnp.stack([0.9 * truth, 0.5 * truth])
  (row,) = scores.evaluate(samples, observation, truth)
  each = [float(pj.metrics.flip(x, truth)[0]) for x in samples]
  assert row["flip"] == pytest.approx(np.mean(each), rel=1e-4)
  mean = float(pj.metrics.flip(samples.mean(0), truth)[0])
  assert row["flip_mean"] == pytest.approx(mean, rel=1e-4)
  grey = pj.Observation(
    truth[..., :1], pj.operators.random_inpainting((16, 16, 1)), 0.1
  )
  (row,) = scores.evaluate(samples[..., :1], grey, truth[..., :1])
  assert row["flip"] is None and row["flip_mean"] is None


# --- settings -----------------------------------------------------------------


def test_refusals():
  debug = command_line.parse(
    ["restoration", f"--config={CONFIG}"], "restoration"
  )
  settings = command_line.to_settings(study.Settings, debug.config)
  for field, value, words in (
    ("parts", ("speed",), "parts must be among methods, ablation, robustness"),
    ("methods", ("nfc",), "methods must be among NFC"),
    ("tasks", ("blur",), "tasks must be among super resolution; .*'blur'"),
    ("evaluations", (), "evaluations and robust_evaluations must hold"),
    ("robust_evaluations", 0, "evaluations and robust_evaluations must hold"),
    ("samples", 1, "samples must be at least 2"),
  ):
    with refused(ValueError, words):
      dataclasses.replace(settings, **{field: value})
  for field, value, words in (
    ("photographs", ("lena",), "photographs must be among astronaut"),
    ("photographs", (), "photographs must name one"),
    ("size", 100, "size must lie in"),
    ("noise_std", 0.0, "noise_std must be positive"),
    ("lpips", "none.pt", "lpips must name a file, 'none.pt' is none"),
  ):
    with refused(ValueError, words):
      dataclasses.replace(settings.setup, **{field: value})


def test_grids_are_of_one_budget_and_valid():
  assert set(tune_samplers.GRIDS) == set(samplers.METHODS)
  for method in tune_samplers.GRIDS:
    found = tune_samplers.points(method)
    assert 6 <= len(found) <= tune_samplers.LARGEST
    for point in found:
      samplers.config(method, samplers.TUNED, **dict(point))


def test_ranking_compares_on_the_same_cases():
  """Of what all points have, the best mean first; nothing that diverged."""
  rows = [
    {
      "method": "DPS",
      "variant": point,
      "task": task,
      "kernel": "",
      "photograph": "moon",
      "psnr": psnr,
    }
    for point, task, psnr in (
      ("a", "x", 20.0),
      ("a", "y", 22.0),
      ("a", "z", 90.0),
      ("b", "x", 25.0),
      ("b", "y", 25.0),
      ("c", "x", "nan"),
      ("c", "y", 25.0),
      ("d", "x", None),
    )
  ]
  expected = {"DPS": [("b", 25.0), ("a", 21.0)]}
  assert tune_samplers.ranking(rows) == expected


@pytest.mark.slow
def test_two_devices_give_what_one_gives():
  """Programs are placed in turn; a device's samples do not depend on it."""
  prior = degradations.build_prior(64)
  truth = jax.random.normal(jax.random.key(0), (1, 64, 64, 3)) / 4
  shared = setup.Setup(("noise",), truth, prior.denoise, prior.spectrum, 0.1, 0)
  program = runs.Program("methods", "DPS", "tuned", FROZEN[1:2], 2)
  rows = list(runs.run_all([program] * 2, shared, workers=2))
  assert len(rows) == 2 and len(jax.local_devices()) > 1
  assert rows[0][0]["psnr"] == rows[1][0]["psnr"]


def test_what_follows_from_rows():
  """Draws of a known posterior: mean off by 0.1, spread 0.2 in every pixel."""
  rng = np.random.default_rng(0)
  truth = rng.normal(0.0, 0.2, (3, 128, 128, 3)).clip(-0.9, 0.9)
  samples = 0.1 + rng.normal(0.0, 0.2, (4, *truth.shape)).clip(-0.9, 0.9)
  operator = pj.operators.box_inpainting(truth.shape[1:], size=8)
  truth = jnp.asarray(np.float32(truth))
  observation = pj.Observation(truth, operator, 0.1)
  samples = jnp.asarray(np.float32(samples))
  about = _row("NFC", "tuned", 10, None) | {"samples": 4}
  found = [
    about | {"photograph": str(i)} | row
    for i, row in enumerate(scores.evaluate(samples, observation, truth))
  ]
  rows = tables.latest(frame(found)).to_dict("records")
  assert len(rows) == 3
  for row in rows:
    # One sample's error: two draws and the offset.
    assert abs(row["certainty"] - np.sqrt(0.08 / 0.09)) < 0.01
    expected = 10 * np.log10(4 / (0.1**2 + 0.2**2))
    assert abs(row["psnr_limit"] - expected) < 0.1
    assert row["psnr_limit"] > row["psnr_mean"] + 0.5
  alone = found[0] | {"samples": 1, "spread": None, "psnr_mean": None}
  (row,) = tables.latest(frame([alone, found[0], alone])).to_dict("records")
  assert np.isnan(row["certainty"]) and np.isnan(row["psnr_limit"])
