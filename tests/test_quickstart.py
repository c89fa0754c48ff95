"""The quickstart from the command line to its report, and its parts."""

import csv
import itertools
import json
import math
import pathlib
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from absl import app

from experiments import readme
from experiments.data import degradations, key_families, photographs, text_data
from experiments.harness import command_line, runner
from experiments.harness.reporting import report
from experiments.inverse_accuracy import cases, errors, text_matrices
from experiments.inverse_accuracy import study as inverse_study
from experiments.quickstart import known, pages, restoration, study
from neumann_jax import InverseSpec, shipped
from posterior_jax.priors import photo
from tests import conftest, oracles


class Finished(NamedTuple):
  folder: pathlib.Path  # of the run
  said: str  # what it printed
  operators: dict  # that it restored from
  methods: dict  # whose errors it has


# Samplers take seconds for each operator, and inverses compile again for
# another chunk size: the quickest of README's picture will do.
ONE, ALL = pages.BRIEF_OPERATORS[1:2], tuple(degradations.OPERATORS)


@pytest.fixture(
  scope="module",
  params=[ONE, pytest.param(ALL, marks=pytest.mark.slow)],
  ids=["one operator", "all operators"],
)
def finished(request, tmp_path_factory):
  """A finished debug run."""
  folder = tmp_path_factory.mktemp("quickstart") / "run"
  config = pathlib.Path(command_line.CONFIGS) / "quickstart.py:debug"
  chosen = {name: degradations.OPERATORS[name] for name in request.param}
  methods = cases.METHODS
  argv = ["quickstart", f"--config={config}", f"--workdir={folder}"]
  if request.param == ONE:
    argv += [
      "--config.restoration.baselines=('DPIR',)",
      "--config.inverse.paper_chunks=(64,)",
    ]
  written = []

  class Stream:
    write = written.append
    flush = staticmethod(lambda: None)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "stdout", Stream())
    patch.setattr(degradations, "OPERATORS", chosen)
    if request.param == ONE:
      patch.setattr(pages, "BRIEF_OPERATORS", ONE)
      # Each is compiled in every format: README's will do.
      methods = {name: cases.METHODS[name] for name in readme.METHODS}
      patch.setattr(cases, "METHODS", methods)
      patch.setattr(cases, "FIXED_SCALE", ("ladder",))
      if not conftest.FULL:
        # Its programs ask for more than the tests' others.
        patch.setitem(restoration._QUICK, "xla_backend_optimization_level", "0")
    runner.main(
      "quickstart",
      study.Settings,
      study.quickstart,
      argv,
      prepare=study.prepare,
    )
  return Finished(folder, "".join(written), chosen, methods)


def _rows(folder, name):
  with (folder / f"{name}.jsonl").open() as file:
    return [json.loads(line) for line in file]


def test_last_line_names_the_report(finished):
  report = finished.folder / "report.html"
  assert finished.said.splitlines()[-1] == f"report: {report}"


def test_report_is_self_contained_and_says_what_was_measured(finished):
  text = (finished.folder / "report.html").read_text()
  assert "<script" not in text
  assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
  assert text.count("<table") == text.count('class="measured"') >= 8
  assert text.count("<figure>") == 4
  assert text.count("<details>") == text.count("</details>") >= 7
  for operator in finished.operators:
    assert text.count(f">{operator}<") >= 4
  for method in finished.methods:
    assert f">{method}<" in text
  environment = json.loads((finished.folder / "environment.json").read_text())
  assert environment["status"] == "finished"
  assert environment["versions"]["jax"] == jax.__version__ in text


def test_report_shows_the_papers_failure(finished):
  """Its setting for 64 tokens in red, the ladder beside it not."""
  text = (finished.folder / "report.html").read_text()
  table = text[text.index('id="families"') :]
  rows = {}
  for row in re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")]):
    cells = re.findall(r"<td([^>]*)>([^<]*)<", row)  # attributes and text
    if cells:
      rows[cells[0][1]] = cells[2:]
  banded = rows["banded N3 S8 (paper, C=64)"]
  assert all("bad" in mark for mark, _ in banded)
  for name in ("ladder", "newton", "ladder + refine", "exact solve"):
    assert not any("bad" in mark for mark, _ in rows[name])


def test_tables_on_disk_agree(finished):
  for name in (
    *("families", "model", "paper_settings"),
    *("restoration", "bands"),
  ):
    rows = _rows(finished.folder, name)
    with (finished.folder / f"{name}.csv").open(newline="") as file:
      lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) > 0
    for row, line in zip(rows, lines):
      for field, value in row.items():
        assert line[field] == ("" if value is None else str(value))
  assert (
    sum(row["violations"] for row in _rows(finished.folder, "families")) == 0
  )


def test_a_photograph_is_restored_from_every_operator(finished):
  rows = _rows(finished.folder, "restoration")
  found = {(r["operator"], r["photograph"], r["method"]) for r in rows}
  assert len(found) == len(rows) == 5 * len(finished.operators)
  assert all(math.isfinite(row["psnr"]) for row in rows)
  restored = [r for r in rows if r["method"] == restoration.FAST]
  degraded = [r for r in rows if r["method"] == restoration.DEGRADED]
  gains = [a["psnr"] - b["psnr"] for a, b in zip(restored, degraded)]
  assert np.mean(gains) > 1 and min(gains) > 0
  # A restored picture takes what its baseline takes.
  calls = {r["method"]: (r["calls"], r["products"]) for r in rows}
  assert calls[restoration.FAST] == calls[restoration.DPIR] == (5, 0)
  assert calls[restoration.SAMPLE] == (2, 0)
  assert calls[restoration.MEAN] == (4, 0)


def test_spread_is_that_of_the_known_posterior(finished):
  """In every band, and far too large where the published width is taken."""
  rows = _rows(finished.folder, "bands")
  by_method = {}
  for row in rows:
    by_method.setdefault(row["method"], []).append(row)
  calibrated, published = (
    by_method[known.CALIBRATED],
    by_method[known.PUBLISHED],
  )
  assert len(calibrated) == len(published) > 2
  for row in calibrated:
    assert abs(row["ratio"] - 1) < 5 * row["error"] + 0.05
  assert published[-1]["ratio"] > 2


def test_the_control_differs_by_centre_and_width_alone():
  ours, published = known._configs(20).values()
  assert ours.sigma_min == published.sigma_min == 0.02
  changed = {"predictor": ours.predictor, "width": ours.width}
  assert published.replace(**changed, schedule=ours.schedule) == ours


def test_readme_block_comes_from_the_run(finished):
  block = readme.block(finished.folder)
  rows = _rows(finished.folder, "families")
  for method in readme.METHODS:
    chosen = [
      float(r["worst"])
      for r in rows
      if (r["method"], r["format"]) == (method, "INT8")
      and r["beta"] != "0 to 2"
    ]
    line = next(x for x in block.splitlines() if x.startswith(f"| {method} |"))
    assert line.endswith(f" {report.short(max(chosen))} |")
  assert f"]({readme.PICTURE})" in block


def test_readme_refuses_what_is_no_finished_run(tmp_path):
  with pytest.raises(app.UsageError, match="is no finished quickstart"):
    readme.main(["readme", str(tmp_path)])


def test_settings_refuse_in_one_sentence():
  for build, sentence in (
    (lambda: errors.InverseSettings(draws=0), "draws must be"),
    (lambda: errors.InverseSettings(tokens=65), "tokens must be"),
    (lambda: restoration.RestorationSettings(size=32), "size must lie"),
    (
      lambda: restoration.RestorationSettings(num_samples=1),
      "num_samples must be",
    ),
    (
      lambda: restoration.RestorationSettings(photograph="rocket"),
      "must not be among the prior's own",
    ),
    (
      lambda: restoration.RestorationSettings(baselines=("DPIR",)),
      "baselines must name one for each of 5 operators, got 1",
    ),
  ):
    with pytest.raises(ValueError, match=sentence):
      build()


@pytest.mark.parametrize("prior, turned", [("", True), ("a.json", False)])
def test_a_prior_of_ones_own_is_shown_nothing_turned(prior, turned):
  """It may be one of faces, which it has learned one way up."""
  settings = restoration.RestorationSettings(prior=prior)
  assert restoration.fast(settings).predictor.turned == turned


def test_study_measures_the_error_it_says():
  """Against the inverse by numpy, and an error put in on purpose."""
  settings = errors.InverseSettings(draws=2)
  groups = errors.family_groups(settings, betas=[(0.6, 1.0)])[:4]
  spec = InverseSpec(method="ladder", precision="bfloat16")
  rows = errors.study(groups, [("ladder", "bfloat16", spec)])
  for row, group in zip(rows, groups):
    exact = np.linalg.inv(np.eye(64) + np.tril(group.a, -1).astype(np.float64))
    wrong = exact * (1 + 1e-3)
    found = key_families.relative_error(wrong, exact)
    np.testing.assert_allclose(found, 1e-3, rtol=1e-6)
    assert (row.family, row.decay) == (group.family, group.decay)
    assert 0 < row.median <= row.worst < 0.1 and row.products == 10
    assert row.violations == 0 and row.entry <= row.certified


@pytest.mark.slow
def test_the_papers_settings_are_measured_at_every_length():
  """Those that the debug form leaves out; its own run has 32 and 64."""
  settings = errors.InverseSettings(
    draws=1, formats=("float32",), paper_chunks=(32, 128)
  )
  rows = inverse_study.paper_rows(settings, [])
  found = {(row.chunk_size, row.method) for row in rows}
  assert found == set(itertools.product((32, 128), ("banded", "ladder")))
  assert all(row.worst < 1e-4 for row in rows if row.method == "ladder")
  assert not sum(row.violations for row in rows)


@pytest.mark.slow
def test_matrices_are_those_of_the_shipped_model():
  """Of text it was not trained on; hard, or the study would show nothing."""
  settings = errors.InverseSettings(tokens=128)
  group, difficulty = text_matrices.model_group(settings)
  assert all(map(text_data.is_held_out, difficulty.modules))
  model = shipped.language_model()
  document = text_matrices.modules(128)[0]
  tokens = [text_data.DOCUMENT, *document.data[:127]]
  layer = model.layers[0]

  def of_first_layer(tokens):
    x = layer.input_layernorm(model.embed_tokens(tokens))
    return layer.linear_attn.chunk_matrices(x).a  # [1, Hv, 2, C, C]

  first = oracles.quick_jit(of_first_layer)(np.array([tokens]))
  count = (
    2 * 2 * first.shape[1] * model.config.layer_types.count("linear_attention")
  )
  assert group.a.shape == (count, 64, 64) and difficulty.matrices == count
  expected = np.asarray(first).reshape(-1, 64, 64)
  np.testing.assert_allclose(group.a[: len(expected)], expected, atol=1e-4)
  assert 0.05 < difficulty.cosine < 1 and difficulty.row_sum > 1
  with pytest.raises(ValueError, match="tokens must be at most"):
    text_matrices.modules(10**9)


def test_photographs_are_disjoint_and_in_range():
  assert not set(photographs.RESTORED) & set(photographs.PRIOR)
  images = photographs.stack(photographs.RESTORED, 64)
  assert images.shape == (3, 64, 64, 3) and images.dtype == np.float32
  assert images.min() >= -1 and images.max() <= 1
  # Averaging down keeps the mean of the centre square.
  large = photographs.load("astronaut", 512)
  np.testing.assert_allclose(
    photographs.load("astronaut", 64).mean((0, 1)),
    large.mean((0, 1)),
    atol=1e-4,
  )
  with pytest.raises(ValueError, match="name must be one of"):
    photographs.load("lena", 64)
  with pytest.raises(ValueError, match="fewer than"):
    photographs.load("chelsea", 4000)


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    (3.2e10, "3.2e10"),
    (1.1e7, "1.1e7"),
    (1.6e-7, "1.6e-7"),
    (1e-12, "1.0e-12"),
    (0.066, "0.066"),
    (123.4, "123"),
    (0.0, "0"),
    (math.inf, "overflow"),
    (math.nan, "nan"),
  ],
)
def test_short_numbers(value, shown):
  assert report.short(value) == shown


def test_report_escapes_and_refuses_ragged_rows(tmp_path):
  page = report.Report("a < b", "x & `code <`")
  page.table("t", ["one"], [["<b>"]], measured_on="nothing", name="n")
  with pytest.raises(ValueError, match="1 entries for 2 columns"):
    page.table("t", ["one", "two"], [[1]], measured_on="", name="n")
  text = page.write(tmp_path / "r.html").read_text()
  assert "a &lt; b" in text and "<code>code &lt;</code>" in text
  assert "&lt;b&gt;" in text and "<b>" not in text


@pytest.mark.parametrize("prior, size", [("", "small"), ("large", "large")])
def test_the_caption_says_what_the_prior_learned_from(prior, size):
  said = json.loads(photo.SHIPPED[size].read_text())
  words = pages._prior(restoration.RestorationSettings(prior=prior))
  assert f"learned from {len(said['photographs'])} other photographs" in words
