"""Equal tuning on further kernels of motion blur, and its wins and ranks."""

import numpy as np
import pandas as pd

from experiments.equal_tuning import cells, known, merged, tables
from experiments.equal_tuning.page import kernels, ranks
from experiments.harness import record
from posterior_jax.operators import frozen
from tests import oracles
from tests.test_equal_tuning_tables import rows_of, trials_of

FAST = "NFC, fast()"
FURTHER = [name for name in frozen.ALL_PATHS if name not in frozen.PATHS]


def motion(psnr, names):
  """Rows of motion blur by some kernels."""
  rows = rows_of(psnr)
  own = rows[rows["task"] == cells.MOTION]
  each = [own.assign(kernel=name) for name in names]
  return tables.named(pd.concat(each, ignore_index=True))


def test_a_task_is_tuned_on_one_degradation_and_reported_on_its_kernels():
  assert str(cells.tuned_on(cells.MOTION)) == "motion blur, medium"
  own = cells.reported(cells.MOTION, ("long", "p20"))
  assert [each.kernel for each in own] == ["long", "p20"]
  (box,) = cells.reported("box_inpainting", ("long", "p20"))
  assert box == cells.tuned_on("box_inpainting")


def test_rows_of_further_kernels_lie_apart(tmp_path, capsys):
  """Those of a cell that lacks one are left out; what is there stays."""
  trials, rows = known.files(str(tmp_path))
  old = rows_of({"NFC, a": 27.0, "DPIR": 25.0})
  tables.packed(old).to_csv(rows, index=False)
  columns = [*tables.SEARCH, "knobs", "point", "psnr", "lpips"]
  pd.DataFrame(columns=columns).to_csv(trials, index=False)
  before = rows.read_bytes()
  found = motion({"NFC, fast()": 27.0, "DPIR": 25.0}, FURTHER)
  found = found.assign(prior="small").drop(columns="operator")
  cut = (found["method"] == "DPIR") & (found["kernel"] == FURTHER[-1])
  with record.Run(tmp_path / "run", command=["here"], config={}) as run:
    for row in found[~cut].to_dict("records"):
      run.write(tables.TABLE, row)
  further = tmp_path / "kernel_rows.csv"
  merged.take(tmp_path / "run", rows=rows, trials=trials, kernels=further)
  assert rows.read_bytes() == before
  lost = 2 * (len(FURTHER) - 1) * len(tables.SCORES)
  assert f"{lost} rows of cells that lack others" in capsys.readouterr().out
  taken = tables.read(further)
  assert set(taken["method"]) == {"NFC, fast()"}
  assert {*taken["operator"]} == {f"motion, {name}" for name in FURTHER}
  assert len(taken) == len(FURTHER) * len(tables.SCORES) * 2


def test_nothing_is_taken_of_a_run_whose_prior_is_refused(tmp_path):
  """Neither its further kernels, whose file is not there yet."""
  trials, rows = known.files(str(tmp_path))
  old = rows_of({"NFC, a": 27.0}).assign(prior="third")
  tables.packed(old).to_csv(rows, index=False)
  found = motion({"DPIR": 25.0}, frozen.ALL_PATHS).assign(prior="small")
  with record.Run(tmp_path / "run", command=["here"], config={}) as run:
    for row in found.drop(columns="operator").to_dict("records"):
      run.write(tables.TABLE, row)
    point = [*tables.SEARCH, "point", "psnr", "lpips"]
    run.write(tables.TRIED, found[point].to_dict("records")[0])
  further = tmp_path / "kernel_rows.csv"
  with oracles.refused(ValueError, "rows.csv must be of one prior, 'third'"):
    merged.take(tmp_path / "run", rows=rows, trials=trials, kernels=further)
  assert not further.exists()


def test_the_section_of_ten_kernels_has_each_and_all():
  psnr = {FAST: 27.0, "NFC, restoration()": 26.0, "X": 25.0, "Y": 24.0}
  rows, more = motion(psnr, frozen.PATHS), motion(psnr, FURTHER)
  # By the pictures that are tuned on the other preset is the better one.
  trials = pd.concat(
    trials_of(name, 20, [score]).assign(task=cells.MOTION, point="a=1")
    for name, score in ((FAST, 24.0), ("NFC, restoration()", 25.0))
  )
  # X is better on three kernels, by 4 dB where it was behind by 2.
  high = more["kernel"].isin(FURTHER[:3]) & (more["method"] == "X")
  more.loc[high, "psnr"] += 6.0
  text = kernels.block(rows, more, trials)
  lead = f"{(7 * 2 - 3 * 4) / 10:+.2f}"
  leads = f"{lead} ({lead}, {lead}) |"
  assert f"| PSNR, 20 | best | 7 / 0 / 3 | `fast()` | X | {leads}" in text
  less = "-0.80 (-0.80, -0.80) |"
  own = "| PSNR, 20 | `tuned()` | 7 / 0 / 3 | `restoration()` | X |"
  assert f"{own} {less}" in text
  assert f"| all | `fast()` 27.50 | X 27.30 | {leads}" in text
  names = [line.split(" | ")[0][2:] for line in text.splitlines()]
  assert [n for n in names if n in frozen.ALL_PATHS] == 2 * [*frozen.ALL_PATHS]
  # A method without one of the kernels is in no mean over all of them.
  lost = more[~((more["method"] == "X") & (more["kernel"] == FURTHER[0]))]
  assert "| all | `fast()` 27.50 | Y 24.50 |" in kernels.block(
    rows, lost, trials
  )


def test_wins_and_ranks_are_those_of_every_budget():
  few = rows_of({"NFC, a": 27.0, "X": 25.0, "Y": 24.0})
  many = rows_of({"NFC, a": 27.0, "X": 28.0}).assign(evaluations=100)
  box = (many["operator"] == "box") & (many["method"] == "X")
  many.loc[box, ["psnr", "lpips"]] = 20.0, 0.9
  # Y's run at 100 diverged on one picture, so that it has no rank there.
  lost = rows_of({"Y": 26.0}).assign(evaluations=100)
  lost.loc[lost["operator"] == "box", ["psnr", "lpips"]] = np.nan
  text = ranks.block(pd.concat([few, many, lost]))
  psnr, lpips = text.split("LPIPS:")
  for part in (psnr, lpips):
    assert "| NFC, a | **100 / 1** | **50 / 1.5** |" in part
    assert "| X | 0 / 2 | **50 / 1.5** |" in part
    assert "| Y | 0 / 3 | - |" in part
