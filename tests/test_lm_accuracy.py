"""The accuracy study: what it reads, what it measures, what it promises."""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from configs import lm_accuracy as config
from experiments.data import key_families, text_data
from experiments.evaluate_lm.scores import Scores
from experiments.harness import command_line, record
from experiments.harness.progress import silent
from experiments.harness.reporting.tables import frame
from experiments.harness.subjects import text_model
from experiments.lm_accuracy import (
  capture,
  errors,
  grid,
  layerwise,
  paper,
  plans,
  predictions,
  promises,
  token_rows,
)
from experiments.lm_accuracy import study as lm_accuracy
from experiments.lm_accuracy.token_rows import (
  ADVERSARIAL,
  MAKERS,
  NATURAL,
  TokenRows,
)
from neumann_jax import Execution, InverseSpec, RuleOptions
from neumann_jax.chunk_inverse.planner import rounding_bound
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_compilation")


def settings(**changes):
  given = config.get_config("debug").to_dict() | {"model": "random"}
  return command_line.to_settings(lm_accuracy.Settings, given | changes)


@pytest.fixture(scope="module")
def study():
  return lm_accuracy.prepare(settings())


def test_text_is_held_out_and_adversarial_text_repeats():
  given = {"natural": 3, "adversarial": 2, "window": 256, "seed": 4}
  stream = token_rows.held_out("", 256)
  rows = token_rows.text_rows(stream, **given)
  again = token_rows.text_rows(stream, **given)
  assert (rows.tokens == again.tokens).all() and rows.kinds == again.kinds
  other = token_rows.text_rows(stream, **given | {"seed": 5})
  assert (other.tokens != rows.tokens).any()
  assert rows.kinds == (NATURAL,) * 3 + tuple(
    kind for kind in MAKERS for _ in range(2)
  )
  assert rows.counted.sum() > 0 and not rows.counted[:, 0].any()
  assert (rows.tokens[rows.counted] < 256).all()
  for row in rows.tokens[rows.of(NATURAL)]:
    assert row.astype(np.uint16).tobytes() in stream.tobytes()
  for row in rows.tokens[rows.of("period")]:
    periods = [p for p in range(1, 25) if (row[1 + p :] == row[1:-p]).all()]
    assert row[0] == text_data.DOCUMENT and periods
  for row in rows.tokens[rows.of("repeated line")]:
    lines = bytes(row[1:].astype(np.uint8)).split(b"\n")
    assert len(set(lines[:-1])) == 1 and lines[0].startswith(lines[-1])
  picked = rows.first(1, ("table", NATURAL))
  assert picked.kinds == ("table", NATURAL) and picked.tokens.shape == (2, 256)


def test_a_folder_without_enough_held_out_text_is_refused(tmp_path):
  names = (f"m{i}.py" for i in range(99))
  held = next(name for name in names if text_data.is_held_out(name))
  (tmp_path / held).write_text("x = 1\n")
  with oracles.refused(
    ValueError, "data must hold out at least the window's 256 bytes, got 7"
  ):
    token_rows.held_out(str(tmp_path), 256)


@pytest.mark.slow
def test_task_rows_have_answers_enough(study):
  rows = study.tasks
  for kind in dict.fromkeys(rows.kinds):
    counts = rows.counted[rows.of(kind)].sum(axis=1)
    assert counts.sum() >= 20 > counts[:-1].sum()  # and not a row too many
  both = token_rows.joined(study.text, rows)
  assert both.kinds == study.text.kinds + rows.kinds
  assert (both.tokens[len(study.text.tokens) :] == rows.tokens).all()


@pytest.mark.slow
def test_layer_by_layer_is_the_model(study):
  spec = InverseSpec("banded", order=3, residual_steps=8, precision="float16")
  tokens = jnp.asarray(study.text.tokens[2:4])
  case = study.model.with_execution(spec=spec, chunk_size=64)
  whole = study.model.with_execution(spec=spec, chunk_size=64)
  # Of another program; hidden states are of order 1.
  np.testing.assert_allclose(
    layerwise.hidden_states(case, tokens),
    nnx.jit(lambda m, t: m.hidden_states(t)[0])(whole, tokens),
    atol=2e-4,
  )
  assert study.model.layers[0].linear_attn.rule.spec == InverseSpec("exact")
  for found, want in zip(
    layerwise.chunk_matrices(case, tokens),
    nnx.jit(lambda m, t: m.chunk_matrices(t))(whole, tokens),
    strict=True,
  ):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), found, want
    )


def test_differences_are_those_of_paired_tokens():
  rng = np.random.default_rng(0)
  loss, exact = rng.standard_normal((2, 5, 7)) + 3
  right, exactly = rng.integers(0, 2, (2, 5, 7)).astype(bool)
  where = rng.integers(0, 2, (5, 7)).astype(bool)
  where[2] = False  # a row of another kind
  found = predictions.compared(
    Scores(loss, np.full((5, 7), 0.25), right),
    Scores(exact, np.zeros((5, 7)), exactly),
    where,
  )
  more = (loss - exact)[where] / math.log(2)
  assert found["tokens"] == where.sum()
  np.testing.assert_allclose(found["more_bits"], more.mean())
  np.testing.assert_allclose(found["bits"], loss[where].mean() / math.log(2))
  np.testing.assert_allclose(found["divergence"], 0.25)
  assert found["changed"] == (right != exactly)[where].sum()
  np.testing.assert_allclose(
    found["more_accuracy"],
    100 * (right[where].mean() - exactly[where].mean()),
  )
  # Whole rows drawn anew, with their tokens: the bootstrap, 4 rows.
  picks = rng.choice([0, 1, 3, 4], (20000, 4))
  sums = np.where(where, (loss - exact) / math.log(2), 0).sum(1)[picks].sum(1)
  spread = (sums / where.sum(1)[picks].sum(1)).std() * math.sqrt(4 / 3)
  np.testing.assert_allclose(found["standard_error"], spread, rtol=0.15)


def test_one_row_has_no_standard_error_and_overflow_shows():
  loss = np.ones((1, 3))
  scores = Scores(loss, loss, loss > 0)
  broken = Scores(loss * np.nan, loss, loss > 0)
  found = predictions.compared(broken, scores, loss > 0)
  assert math.isnan(found["standard_error"]) and math.isnan(found["bits"])


def captured(family, **options):
  """Matrices of a family as those of four layers' heads."""
  chunks = key_families.draw(family, seed=0, count=12, chunk_size=64, **options)
  kinds = np.array([NATURAL, "table", "code"]).repeat(4)
  return capture.Captured(
    *(np.float32(x) for x in (chunks.a, chunks.beta, chunks.log_decay)),
    layer=np.zeros(12, int),
    head=np.arange(12) % 2,
    kind=kinds,
  )


def test_errors_in_decibels_against_float64():
  matrices = captured("cosine_0.5")
  rows = {}
  for found in errors.measure(matrices, ("float64", "float16"), silent):
    for row in errors.summary(found, matrices).itertuples():
      rows[row.group, row.method, row.format] = row
  natural = matrices.take(matrices.kind == NATURAL)
  truth = key_families.exact_inverse(natural.a)
  spec = InverseSpec("ladder", precision="float16")
  x = np.asarray(neumann_jax.inverse(jnp.asarray(natural.a), spec))
  ratio = 20 * np.log10(
    np.linalg.norm(np.tril(truth, -1), axis=(1, 2))
    / np.linalg.norm(x - truth, axis=(1, 2))
  )
  row = rows[NATURAL, "ladder", "float16"]
  np.testing.assert_allclose(
    (row.mean_db, row.worst_db), (ratio.mean(), ratio.min()), rtol=1e-3
  )
  assert (row.matrices, row.products, row.overflowed) == (4, 10, 0)
  other = rows[ADVERSARIAL, "full series", "float16"]
  assert other.matrices == 8 and other.products == 62
  assert other.overflowed > 0 and other.worst_db == -math.inf
  # The ablation: the mask mends what truncation and correction do not.
  wrong, mended = (
    rows[NATURAL, method, "float16"].worst_db
    for method in ("+ residual, S=8", "+ mask")
  )
  assert mended > 30 > wrong
  assert rows[NATURAL, "ladder", "float64"].worst_db > 280
  assert all(row.violations == 0 for row in rows.values())
  names = {method for _, method, _ in rows}
  for method, form in paper.RATIOS:
    assert any(paper.ratio(name, form) for name in names), method
  assert (
    errors.to_decibels(np.array([0, 0.1, np.inf]))
    == [errors.CEILING, 20, -math.inf]
  ).all()


def test_the_grid_shows_what_overflows():
  small = dataclasses.replace(
    text_model.random_config(),
    vocab_size=text_data.VOCABULARY,
    num_hidden_layers=1,
    layer_types=("linear_attention",),
  )
  exact = Execution(rule=RuleOptions(spec=InverseSpec("exact")))
  model = text_model.random_model(small, exact, 0)
  for path, rate in nnx.to_flat_state(nnx.state(model)):
    if path[-1] == "A_log":  # keys of one direction, no decay
      rate[...] = jnp.full_like(rate[...], -20.0)
  tokens = np.full((1, 128), 97, np.int32)
  counted = np.arange(128)[None] > 0
  rows = TokenRows(tokens, counted, (NATURAL,))
  found = {
    (row["masked"], row["terms"]): row
    for row in grid.measure(model, rows, settings(grid_terms=(16,)), silent)
  }
  masked, plain = found[True, 16], found[False, 16]
  assert masked["tokens"] == plain["tokens"] == 127
  assert masked["products"] == 10
  np.testing.assert_allclose(masked["perplexity"], masked["exact"], rtol=1e-2)
  assert masked["broken"] == 0 < plain["broken"]
  assert math.isnan(plain["perplexity"])


def test_plans_by_head_are_kept_and_save_where_decay_is_strong():
  for decay, saves in ((0.0, False), (1.0, True)):
    matrices = captured("cosine_0.5", decay=decay)
    rows = list(
      plans.measure(
        matrices, tolerances=(0.1, 0.01), formats=("float32", "INT16")
      )
    )
    assert [row["head"] for row in rows] == [0, 1] * 4
    for row in rows:
      assert row["row_sum"] <= row["certified"]
      assert row["row_sum"] <= row["promised"] <= row["tolerance"]
      assert row["matrices"] == 6 and row["ladder"] == 10
      assert (row["products"] < 10) == saves, row


def test_samples_of_matrices_and_their_file(tmp_path):
  matrices = captured("rank_4")
  rng = np.random.default_rng(0)
  few = capture.sample(matrices, 2, rng)
  assert list(few.kind) == [NATURAL] * 2 + ["table"] * 2 + ["code"] * 2
  hard = capture.hardest(matrices)
  sums = np.abs(matrices.a).sum(-1).max(-1).reshape(3, 4)
  np.testing.assert_array_equal(
    np.abs(hard.a).sum(-1).max(-1), sums.max(axis=1)
  )
  capture.write(hard, tmp_path / "a.npz")
  for name, value in capture.read(tmp_path / "a.npz")._asdict().items():
    np.testing.assert_array_equal(value, getattr(hard, name), err_msg=name)


REFUSALS = {
  "window": ({"window": 100}, "window must be at least 128, got 100"),
  "count": ({"answers": 0}, "answers must be at least 1, got 0"),
  "chunk": ({"chunk_sizes": (48,)}, "chunk_sizes must be a power of two"),
  "long": (
    {"grid_chunk_sizes": (256,)},
    "grid_chunk_sizes must be from 16 to the window's 128 tokens, got 256",
  ),
  "spec": ({"specs": ("ladder fp8",)}, "got 'ladder fp8'"),
  "weights": ({"weights": ("W3A16",)}, "weight quantisation is one of W4,"),
  "format": ({"formats": ("INT2",)}, "formats must be among float64, float32"),
  "plans": (
    {"plan_formats": ("float64",)},
    "plan_formats must be among float32",
  ),
  "precision": ({"grid_precision": "fp8"}, "grid_precision must be one of"),
  "tolerance": ({"tolerances": (0.0,)}, "tolerances must be positive, got 0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_settings_refuse(case):
  changes, words = REFUSALS[case]
  with pytest.raises(command_line.UsageError, match=words) as caught:
    settings(**changes)
  assert "\n" not in str(caught.value)


class Tables:
  """A run's tables, from rows."""

  def __init__(self, **tables):
    self.frame = lambda name: frame(tables[name])


def test_promises_are_kept_or_not_by_the_worst_case():
  row = {
    "weights": "none",
    "chunk_size": 64,
    "spec": "ladder bfloat16",
    "kind": NATURAL,
    "more_bits": 1e-4,
    "more_accuracy": 0.0,
  }
  rows = [
    row,
    row | {"kind": "table", "chunk_size": 128, "more_bits": -9e-4},
    row | {"kind": "recall", "more_bits": 5.0, "more_accuracy": -0.3},
    row | {"weights": "W4A16", "more_bits": 1.0},
    row | {"spec": "ladder int16-dynamic", "more_bits": "nan"},
  ]
  bits, narrow, recall, plan, entries = promises.of(
    Tables(
      predictions=rows,
      plans=[{"row_sum": 0.02, "tolerance": 0.1}],
      errors=[{"format": "float16", "violations": 2}],
    )
  )
  assert bits.kept and (bits.measured, bits.where) == (9e-4, "C = 128, table")
  assert not narrow.kept and narrow.measured == math.inf
  assert not recall.kept and recall.measured == 0.3
  assert plan.kept and plan.measured == pytest.approx(0.2)
  assert not entries.kept and entries.measured == 2


@pytest.mark.slow
def test_debug_form(study, tmp_path, capsys):
  with record.Run(tmp_path / "o") as run:
    lm_accuracy.lm_accuracy(study, run)
  said = capsys.readouterr()
  assert f"report: {tmp_path / 'o/report.html'}" in said.out
  assert "BROKEN" not in said.out and "kept" in said.out
  total = settings().units(2)
  assert f"lm_accuracy {total}/{total} done" in said.err
  report = (tmp_path / "o/report.html").read_text()
  for name in (
    "promises",
    "exact",
    "differences-none-64",
    "differences-W4A16-64",
    "beside-the-paper",
    "mean-ratio-in-db-held-out-text",
    "worst-ratio-in-db-adversarial-text",
    "grid",
    "plans",
  ):
    assert f'id="{name}"' in report
  assert report.count("data:image/png") == 5
  for name in ("predictions", "grid", "errors", "certificates", "plans"):
    lines = (tmp_path / f"o/{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows and (tmp_path / f"o/{name}.csv").exists()
  sample = capture.read(tmp_path / "o" / lm_accuracy.SAMPLE)
  assert len(sample.a) == 2 * 5 and len(set(sample.kind)) == 5


# Of the shipped model: of every layer and kind of text the chunk of 64 bytes
# with the largest row sum of |A|, as `lm_accuracy` leaves it in its folder.
FIXTURE = pathlib.Path(__file__).parent / "fixtures" / lm_accuracy.SAMPLE


@pytest.mark.slow
def test_hard_matrices_of_the_shipped_model():
  """What the study found on them, in seconds: the methods, certified."""
  matrices = capture.read(FIXTURE)
  kinds = list(lm_accuracy.TEXTS)
  assert FIXTURE.stat().st_size <= 300_000 and matrices.a.shape[1:] == (64, 64)
  assert list(matrices.kind) == kinds * 6  # of six layers
  assert np.abs(matrices.a).sum(-1).max() > 1  # and no easy ones
  worst = {}
  for found in errors.measure(matrices, ("bfloat16", "INT8"), silent):
    row_sum, certified = found.errors.row_sum, found.errors.certified
    assert (found.errors.violations == 0).all(), found[:2]
    assert (row_sum <= certified).all(), found[:2]
    worst[found.method, found.format] = float(row_sum.max())
    limit = rounding_bound(found.spec, 64, 1.0)
    if limit is not None:
      assert row_sum.max() <= limit, found[:2]
  for form in ("bfloat16", "INT8"):
    assert worst["ladder + refine", form] < worst["ladder", form]
    assert worst["ladder", form] < worst["+ mask", form]


@pytest.mark.slow
def test_the_fixture_is_of_the_shipped_model():
  """Of the kinds that no version of the standard library changes."""
  given = config.get_config("").to_dict() | {"answers": 1}
  study = lm_accuracy.prepare(
    command_line.to_settings(lm_accuracy.Settings, given)
  )
  rows = study.text.first(study.settings.captured_rows, lm_accuracy.TEXTS)
  found = capture.joined(
    [capture.hardest(layer) for layer in capture.layers(study.model, rows, 64)]
  )
  same = np.isin(found.kind, ("period", "table", "code"))
  kept = capture.read(FIXTURE).take(same)
  for name, value in found.take(same)._asdict().items():
    if name in ("layer", "head", "kind"):
      np.testing.assert_array_equal(value, getattr(kept, name))
    else:
      np.testing.assert_allclose(value, getattr(kept, name), atol=1e-3)
