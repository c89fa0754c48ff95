"""What studies are short by: frames, tables, ranges of settings, threads."""

import dataclasses
import math
import threading

import pandas as pd
import pytest

from experiments.harness import record
from experiments.harness.processes import threads
from experiments.harness.reporting import report, tables
from experiments.harness.settings import Checked, setting
from experiments.harness.speed import timing
from tests.oracles import refused

ROWS = [
  {"name": "a", "error": math.inf, "calls": 3, "ms": None, "note": ""},
  {"name": "b", "error": 0.5, "calls": 40_000, "ms": 1.25, "note": "slow"},
  {"name": "c", "error": math.nan, "calls": 4, "ms": 1, "note": ""},
]


def _frame(tmp_path):
  with record.Run(tmp_path / "run") as run:
    for row in ROWS:
      run.write("t", row)
    return run.frame("t")


def test_a_frame_has_the_numbers_that_were_written(tmp_path):
  table = _frame(tmp_path)
  assert list(table) == list(ROWS[0]) and len(table) == 3
  assert table.error[0] == math.inf and math.isnan(table.error[2])
  assert math.isnan(table.ms[0]) and table.ms[1] == 1.25
  assert table.calls.dtype == int and list(table.note) == ["", "slow", ""]


def test_rows_may_be_tuples_with_names(tmp_path):
  found = timing.of([0.4], calls=10)
  with record.Run(tmp_path / "run") as run:
    run.write("t", found)
    assert run.rows("t") == [found._asdict()]


def test_a_frame_as_text(tmp_path):
  table = _frame(tmp_path).set_index("name")
  assert tables.aligned(table, {"ms": 3}) == (
    "name     error  calls     ms  note\n"
    "a     overflow      3      -\n"
    "b          0.5  40000  1.250  slow\n"
    "c            -      4  1.000"
  )


def test_integers_of_a_frame_have_no_decimals():
  table = pd.DataFrame({"tokens": [65536], "loss": [9.4]}).set_index("tokens")
  assert tables.aligned(table, 3) == "tokens  loss\n65536   9.400"


def test_a_frame_in_a_report(tmp_path):
  table = _frame(tmp_path).drop(columns="note")
  page = report.Report("title", "words")
  page.table(
    "caption",
    table,
    measured_on="paper",
    name="t",
    digits={"ms": 2},
    bad={"error": ~(table.error <= 1)},
    best={"ms": "min"},
    source="rows",
  )
  text = page.write(tmp_path / "report.html").read_text()
  assert '<td class="number bad" data-value="inf">overflow</td>' in text
  assert '<td class="number bad" data-value="nan">nan</td>' in text
  assert '<td class="number" data-value="1.25">1.25</td>' in text
  assert '<td class="number best" data-value="1.0">1.00</td>' in text
  assert '<td class="number">-</td>' in text
  assert "Measured on: paper Rows: <code>rows.csv</code>." in text
  with refused(ValueError, "no column 'errors'"):
    page.table("", table, measured_on="", name="", bad={"errors": [True] * 3})


@dataclasses.dataclass(frozen=True)
class Some(Checked):
  count: int = setting(1, at_least=1)
  rate: float = setting(1.0, above=0)
  share: float = setting(0.5, above=0, at_most=1)
  size: int = setting(64, at_least=64, multiple_of=8)
  kind: str = setting("a", among=("a", "b"))
  parts: tuple = setting(("x",), among=("x", "y", "z"), some=True)
  some: tuple = setting((1,), some=True)
  names: tuple = setting((), distinct=True)
  batches: tuple = setting((8,), multiple_of=8, words="batches must be eights")


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"count": 0}, "count must be at least 1, got 0"),
    ({"rate": math.nan}, "rate must be positive, got nan"),
    ({"rate": math.inf}, "rate must be finite, got inf"),
    ({"share": 2}, r"share must lie in \(0, 1\], got 2"),
    ({"size": 60}, "size must be at least 64 and divisible by 8, got 60"),
    ({"kind": "c"}, "kind must be a or b, got 'c'"),
    ({"parts": ("x", "w")}, "parts must be among x, y, z, got 'w'"),
    ({"parts": ()}, r"parts must name some of x, y, z, got \(\)"),
    ({"some": ()}, r"some must be a tuple of at least one, got \(\)"),
    ({"parts": "x"}, "parts must be a tuple, got 'x'"),
    ({"names": ("i", "i")}, "names must not repeat"),
    ({"batches": (8, 12)}, "batches must be eights, got 12"),
  ],
)
def test_values_out_of_range_are_refused_in_one_sentence(changes, sentence):
  Some()
  with refused(ValueError, sentence):
    Some(**changes)


def test_threads_give_every_result_and_stop_at_an_error():
  squares = threads.in_threads(lambda x: x**2, range(4), 2)
  assert sorted(squares) == [0, 1, 4, 9]
  begun, told = [], threading.Event()

  def work(x):
    begun.append(threading.current_thread())
    if x == 0:
      raise RuntimeError("broken")
    told.wait(
      60
    )  # else the thread may empty the queue before the error is read

  with pytest.raises(RuntimeError, match="broken"):
    list(threads.in_threads(work, range(1000), 1))
  told.set()
  begun[0].join(60)
  assert len(begun) <= 2


def test_a_row_of_a_table_of_times():
  good = timing.Job("x", "xla", lambda: (timing.of([1.0], 1), {"error": 0.5}))
  bad = timing.Job("y", "gpu", lambda: 1 / 0)
  rows = [
    timing.row(job, {"tokens": 8}, ("error", "memory")) for job in (good, bad)
  ]
  assert list(rows[0]) == list(rows[1])
  assert rows[0]["median_ms"] == 1e3 and rows[0]["error"] == 0.5
  assert rows[1]["median_ms"] is None and "ZeroDivisionError" in rows[1]["note"]
