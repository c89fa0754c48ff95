"""The speed study: its clock, its data, its refusals and a run on a CPU."""

import csv
import importlib
import json
import os
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from experiments.data import device_keys, key_families
from experiments.harness import command_line, runner
from experiments.harness.reporting import tables
from experiments.harness.speed import in_turns, timing
from experiments.inverse_speed import cases as speed_cases
from experiments.inverse_speed import (
  inverse_part,
  overflow_part,
  report,
  study,
  wy_part,
)
from experiments.peers import gpu

CONFIG = f"{command_line.CONFIGS / 'inverse_speed.py'}"
HARMLESS = "XLA_PYTHON_CLIENT_PREALLOCATE"


def _settings(form="", **changes):
  config = importlib.import_module("configs.inverse_speed").get_config(form)
  return command_line.to_settings(study.Settings, config.to_dict() | changes)


class Clock:
  """Says the time, which passes only in calls."""

  def __init__(self, costs):
    self.now, self.costs, self.seen = 0.0, iter(costs), []

  def __call__(self):
    return self.now

  def work(self, x):
    self.seen.append(x)
    self.now += next(self.costs)
    return x


def test_statistics_are_of_one_call():
  found = timing.of([0.4, 0.2, 0.9], calls=10, first=3.0)
  assert found == pytest.approx((40.0, 20.0, 90.0, 10, 3.0))
  half = timing.of([0.2], calls=10)
  assert timing.ratio(half, found) == pytest.approx(0.5)
  assert timing.ratio(None, found) is None
  assert set(timing.columns(None).values()) == {None}


def test_measure_rotates_and_leaves_the_first_calls_out():
  waited = []
  # 1 that compiles, 3 + 3 to warm up, 4 unmeasured, then 2 rounds of 4.
  clock = Clock([5.0] + [0.02] * 10 + [0.01] * 4 + [0.03] * 4)
  found = timing.measure(
    clock.work,
    [("a",), ("b",), ("c",)],
    repeats=2,
    inner=4,
    wait=waited.append,
    clock=clock,
  )
  assert found == pytest.approx((20.0, 10.0, 30.0, 4, 5.0))
  assert "".join(clock.seen) == ("abc" * 7)[:19]
  assert len(waited) == 1 + 1 + 1 + 1 + 2


def test_calls_in_turns_are_compared_turn_by_turn():
  """A machine that halves its speed for a turn does so for both calls."""
  # Of each 1 that compiles, 3 + 3 to warm up, 1 unmeasured; then three turns.
  ready = [0.1] * 8 + [0.3] * 8
  clock = Clock([*ready, 0.1, 0.3, 0.2, 0.8, 0.1, 0.2])
  first, second = in_turns.measure(
    [clock.work] * 2, [(0,)] * 3, repeats=3, inner=1, wait=id, clock=clock
  )
  assert first.timing == pytest.approx((100, 100, 200, 1, 0.1))
  assert second.timing == pytest.approx((300, 200, 800, 1, 0.3))
  assert first.ratio == pytest.approx((1, 1, 1))
  assert second.ratio == pytest.approx((3, 2, 4))


def test_measure_cuts_slow_calls_short():
  clock = Clock([0.4] * 100)
  found = timing.measure(
    clock.work, [(0,)] * 3, repeats=3, inner=50, wait=id, clock=clock
  )
  assert found.calls == 2 and found.median_ms == pytest.approx(400)


def test_a_failing_job_is_told_in_one_line():
  def fails():
    raise RuntimeError("no room\nand more")

  job = timing.Job("x", "gpu", fails)
  assert timing.run(job) == (None, {}, "failed, RuntimeError: no room")
  refused = job._replace(reason="not here")
  assert timing.run(refused) == (None, {}, "not here")


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"count": 4096}, "count must be larger: a batch is 67 MB"),
    ({"tokens": 1024}, "tokens must be larger"),
    ({"count": 100, "implementation": "xla"}, "count must be at least 480"),
    ({"tokens": 65537}, "tokens must be a multiple of chunk_size = 64"),
    ({"parts": ("inverse", "all")}, "parts must be among inverse, stage"),
    ({"parts": ()}, "parts must name some of"),
    ({"chunk_size": 48}, "chunk_size must be a power of two"),
    ({"repeats": 0}, "repeats must be at least 1"),
    ({"sweep_count": 0}, "sweep_count must be at least 1"),
    ({"implementation": "tpu"}, "implementation must be gpu or xla"),
    ({"specs": ("ladder float8",)}, r"a spec is named METHOD \[N3\]"),
    ({"specs": ("",)}, "a spec is named"),
    ({"specs": ("exact float32",)}, 'method "exact" has no kernel'),
    ({"stage_specs": ("ladder",)}, "a spec is named"),
  ],
)
def test_refusals(changes, sentence):
  with pytest.raises(command_line.UsageError, match=sentence) as error:
    _settings(**changes)
  assert "\n" not in str(error.value)


def test_names_stand_for_specs():
  settings = _settings()
  cases = {case.name: case for case in settings.cases(settings.specs)}
  spec = cases["ladder int8-envelope"].spec
  assert spec.quant == neumann_jax.QuantSpec(8, "envelope", integer=True)
  assert cases["ladder float16 refine"].spec == neumann_jax.InverseSpec(
    "ladder", precision="float16", refine=1
  )
  assert cases["banded float16"].paper
  assert not cases["banded-masked float16"].paper
  masked = cases["banded-masked float16"].spec
  assert (masked.order, masked.residual_steps) == (3, 16)
  assert {c.implementation for c in cases.values()} == {"gpu", "xla"}
  assert cases["xla exact float32"].spec.method == "exact"


@pytest.mark.parametrize("family", key_families.FAMILIES)
def test_keys_on_the_device_follow_the_families(family):
  """Norm, rank, period, and the Gram matrix's mean as numpy draws it."""
  k = np.asarray(device_keys.keys(family, jax.random.key(1), 40, 16, 128))
  np.testing.assert_allclose(np.linalg.norm(k, axis=-1), 1, atol=1e-5)
  rng = np.random.default_rng(2)
  oracle = key_families.keys(family, rng, 40, 16, 128)
  ranks = np.linalg.matrix_rank(k, tol=1e-3), np.linalg.matrix_rank(oracle)
  np.testing.assert_array_equal(*ranks)
  off = ~np.eye(16, dtype=bool)
  grams = [(x @ np.swapaxes(x, 1, 2))[:, off] for x in (k, oracle)]
  # Standard errors: at most 0.1 between chunks, 40 of them.
  np.testing.assert_allclose(grams[0].mean(), grams[1].mean(), atol=0.05)
  assert grams[0].std() == pytest.approx(grams[1].std(), abs=0.03)
  if family == "period_7":
    np.testing.assert_array_equal(k[:, 7:], k[:, :-7])


def test_unknown_family_is_refused():
  with pytest.raises(ValueError, match="family must be one of"):
    device_keys.keys("easy", jax.random.key(0), 1, 16, 8)


def test_mixture_holds_every_combination_and_its_matrices():
  betas = overflow_part.SWEPT_BETAS
  found = device_keys.mixture(jax.random.key(0), 48, 16, 32, betas)
  assert found.keys.shape == (48, 16, 32)
  wide = np.asarray(found.wide)
  decays = -np.asarray(found.log_decay)[:, 0]
  assert {
    (i // 6, float(d), bool(w)) for i, (d, w) in enumerate(zip(decays, wide))
  } == {
    (i, float(np.float32(d)), w)
    for i in range(8)
    for d in key_families.DECAYS
    for w in (False, True)
  }
  beta = np.asarray(found.beta)
  for chosen, (low, high) in zip((~wide, wide), betas):
    assert low <= beta[chosen].min() < beta[chosen].max() <= high
  oracle = key_families.Chunks(
    *(np.asarray(x, np.float64) for x in found[:3])
  ).a
  np.testing.assert_allclose(device_keys.matrices(found), oracle, atol=1e-6)


def test_input_sets_begin_elsewhere_and_are_compared_with_the_truth():
  base = inverse_part.base(0, 1, 16)
  assert len(base.a) == inverse_part.base_count(1) == 48
  sets = inverse_part.input_sets(base, 100)
  for i, (a, bound) in enumerate(sets):
    np.testing.assert_array_equal(a[0], base.a[16 * i])
    np.testing.assert_array_equal(a[:52], a[48:])
    assert bound.shape == (100,) and set(np.unique(bound)) == {1.0, 2.0}
  t = np.array(base.truth)
  t[40] *= 1 + 1e-3
  low, high = inverse_part.errors(base, jnp.asarray(np.float32(t)))
  assert low < 1e-6 and high == pytest.approx(1e-3, rel=1e-2)
  t[3, 5, 2] = np.nan
  broken = jnp.asarray(np.float32(t))
  assert inverse_part.errors(base, broken)[0] == np.inf
  for chosen, count in ((jnp.ones(48, bool), 1), (jnp.arange(48) > 3, 0)):
    assert int(inverse_part.nonfinite(broken, chosen)) == count


def test_fixed_scale_takes_each_matrix_own_bound():
  base = inverse_part.base(0, 1, 32)
  case = speed_cases.parse("ladder int8-envelope", 32, "xla")
  t = speed_cases.compiled(case)(base.a, base.bound)
  assert max(inverse_part.errors(base, t)) < 0.3
  assert speed_cases.compiled(case) is speed_cases.compiled(case)


def test_stage_is_compared_with_the_recurrence():
  """u - w S is what the rule writes, against the exact recurrence."""
  inputs = wy_part.draw(0, tokens=64, heads=8, dim=16, chunk_size=16)
  k, v, log_decay, beta = (np.asarray(x, np.float64) for x in inputs)
  u, w = wy_part.truth((k, v, log_decay, beta), 16)  # [N, H, C, D]
  assert u.shape == w.shape == (4, 8, 16, 16)
  state = np.zeros((8, 16, 16))
  for n in range(2):
    start, written = state, []
    for i in range(16):
      t = 16 * n + i
      state = state * np.exp(log_decay[0, t])[:, None, None]
      read = np.einsum("hkv,hk->hv", state, k[0, t])
      written.append(beta[0, t, :, None] * (v[0, t] - read))
      state = state + np.einsum("hk,hv->hkv", k[0, t], written[-1])
    new = u[n] - w[n] @ start
    np.testing.assert_allclose(new, np.stack(written, 1), atol=1e-9)
  flat = [np.swapaxes(x, 1, 2).reshape(1, 64, 8, 16) for x in (u, w)]
  right = [jnp.asarray(np.float32(x)) for x in flat]
  found = wy_part.evaluate(inputs, *right, 16)
  assert found["error_u"] < 1e-6 and found["error_w"] < 1e-6
  assert found["nonfinite"] == 0
  wrong = right[0].at[0, 3, 2, 1].set(jnp.inf)
  found = wy_part.evaluate(inputs, wrong, right[1] * 1.01, 16)
  assert found["error_u"] == np.inf and found["nonfinite"] == 1
  assert found["error_w"] == pytest.approx(0.01, rel=1e-3)


def test_byte_limit_counts_every_byte_once():
  inputs = wy_part.draw(0, tokens=64, heads=8, dim=16, chunk_size=16)
  copy = timing.of([1e-3], calls=1)  # k read and written in 1 ms
  k, gates = 64 * 8 * 16 * 2, 64 * 8 * 4
  expected = (4 * k + 2 * gates) / (2 * k)
  assert wy_part.limit_ms(inputs, copy) == pytest.approx(expected)


def test_peers_say_why_they_are_missing():
  for package in ("torch", "fla"):
    assert gpu.missing(package) == (f"{package} is timed on CUDA devices only")
  assert "not 128" in gpu.missing_fla(128)
  assert set(gpu.versions()) == set(gpu.PACKAGES)


def test_memory_is_shared_only_with_torch_and_only_if_unset(monkeypatch):
  found = []
  monkeypatch.setattr(gpu, "_installed", found.__contains__)
  monkeypatch.setenv(HARMLESS, "0")
  monkeypatch.delenv(HARMLESS)
  gpu.share_memory()
  assert HARMLESS not in os.environ
  found.append("torch")
  gpu.share_memory()
  assert os.environ[HARMLESS] == "false"
  monkeypatch.setenv(HARMLESS, "true")
  gpu.share_memory()
  assert os.environ[HARMLESS] == "true"


def _main(monkeypatch, capsys, *arguments):
  monkeypatch.setenv(HARMLESS, os.environ.get(HARMLESS, "false"))
  study.main(["inverse_speed", *map(str, arguments)])
  return capsys.readouterr().out


def test_no_gpu_is_one_sentence(monkeypatch, capsys, tmp_path):
  said = _main(monkeypatch, capsys, f"--workdir={tmp_path / 'run'}")
  assert said.count("\n") == 1 and "jax finds no GPU here" in said
  assert not list(tmp_path.glob("run/*.csv"))


def test_bad_config_ends_before_anything(monkeypatch, capsys, tmp_path):
  with pytest.raises(SystemExit) as stop:
    _main(monkeypatch, capsys, "--config.draws=0", f"--workdir={tmp_path}")
  assert stop.value.code == 2
  assert capsys.readouterr().err == (
    "inverse_speed: draws must be at least 1, got 0\n"
  )


def _table(folder, name):
  with (folder / f"{name}.csv").open(newline="") as file:
    return list(csv.DictReader(file))


def _debug_run(tmp_path, specs):
  """A finished debug run: its folder and what it printed."""
  folder = tmp_path / "run"
  argv = ["inverse_speed", f"--config={CONFIG}:debug", f"--workdir={folder}"]
  argv.append(f"--config.specs={specs}")
  with pytest.MonkeyPatch.context() as patch:
    written = []
    stream = types.SimpleNamespace(write=written.append, flush=lambda: None)
    patch.setattr(sys, "stdout", stream)
    runner.main("inverse_speed", study.Settings, study.inverse_speed, argv)
  return folder, "".join(written)


def _check_inverse(finished, specs):
  rows = {row["name"]: row for row in _table(finished[0], "inverse")}
  assert list(rows["copy"]) == [
    *("name", "implementation", "matrices", "chunk_size", "device"),
    *timing.Timing._fields,
    *("to_copy", "to_fla", "error_beta_1", "error_beta_2", "nonfinite"),
    "note",
  ]
  copies = [inverse_part.COPY, inverse_part.TORCH_COPY, inverse_part.FLA]
  assert list(rows) == [*copies, *specs]
  assert float(rows["copy"]["to_copy"]) == 1
  for name in copies[1:]:
    assert rows[name]["median_ms"] == "" and "CUDA" in rows[name]["note"]
  for name in specs:
    row = rows[name]
    assert row["note"] == "" and row["implementation"] == "xla"
    low, mid, high = (
      float(row[f"{word}_ms"]) for word in ("lowest", "median", "highest")
    )
    assert 0 < low <= mid <= high
    assert float(row["to_copy"]) == pytest.approx(
      mid / float(rows["copy"]["median_ms"])
    )
  worst = {n: float(rows[n]["error_beta_1"]) for n in specs}
  assert worst["xla exact float32"] < 2e-6 > worst["xla ladder float32"]
  assert worst["ladder float16"] < 1e-2 < 0.3 < worst["banded float16"]


def _check_sweep(finished):
  rows = _table(finished[0], "sweep")
  assert list(rows[0]) == list(overflow_part.SweepRow._fields)
  for row in rows:
    assert row["nonfinite"] == "0" or row["must_be_zero"] == "False"
  total = sum(int(r["matrices"]) for r in rows if r["name"] == rows[0]["name"])
  assert total == 128  # at least sweep_count, whole batches
  assert {row["beta"] for row in rows} == {"0.6 to 1", "1 to 2"}


def _check_stage(finished):
  rows = {row["name"]: row for row in _table(finished[0], "stage")}
  assert list(rows["fla"]) == [
    *("name", "implementation", "tokens", "heads", "dim", "chunk_size"),
    *("device", *timing.Timing._fields, "to_limit", "to_fla"),
    *("error_u", "error_w", "nonfinite", "note"),
  ]
  limit = float(rows["byte limit"]["median_ms"])
  copy = float(rows["copy of k"]["median_ms"])
  assert 2 * copy < limit < 2.5 * copy
  row = rows["ladder float16"]
  assert row["note"] == "" and row["nonfinite"] == "0"
  assert float(row["error_u"]) < 0.02 > float(row["error_w"])
  assert float(row["to_limit"]) > 0


def _check_report(finished):
  folder, said = finished
  assert said.splitlines()[-1] == f"report: {folder / 'report.html'}"
  text = (folder / "report.html").read_text()
  titles = re.findall(r"<(?:h1|h2[^>]*|caption)>([^<]*)<", text)
  assert len(titles) == 1 + 3 + 3
  assert all(timing.TINY in title for title in titles)
  assert said.count(timing.TINY) == 3
  assert text.count("<table") == text.count('class="measured"') == 3
  assert text.count("<figure>") == 1 and "<script" not in text
  assert f"cpu with jax {jax.__version__}" in text
  environment = json.loads((folder / "environment.json").read_text())
  assert environment["status"] == "finished"
  assert set(gpu.PACKAGES) <= set(environment["versions"])


# Those that are named in what is checked.
FEW = (
  *("ladder float16", "banded float16"),
  *("xla exact float32", "xla ladder float32"),
)


@pytest.mark.parametrize(
  "specs",
  [FEW, pytest.param(_settings("debug").specs, marks=pytest.mark.slow)],
  ids=["few", "all"],
)
def test_debug_form_end_to_end(tmp_path, specs):
  """One test, so that workers do not each run it."""
  finished = _debug_run(tmp_path, specs)
  _check_inverse(finished, specs)
  for check in (_check_sweep, _check_stage, _check_report):
    check(finished)


def test_sweep_failure_is_said_last():
  row = overflow_part.SweepRow("ladder", "gpu", "0 to 1", 9, 2, True, "x", "")
  for rows, said in (
    ([row], "sweep: FAILED for ladder"),
    ([row._replace(nonfinite=None)], "sweep: FAILED for ladder"),
    ([row._replace(must_be_zero=False)], "sweep: 0 wherever it must be"),
  ):
    found = {"sweep": tables.frame(rows)}
    lines = report.closing(found, _settings("debug"))
    assert lines.splitlines()[-1] == said
