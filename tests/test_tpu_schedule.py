"""A schedule is read from a dump: loops, trips, and dumps that do not fit."""

import pytest

from experiments.tpu_cycles import schedule

ANALYSIS = "Schedule analysis:\n\ttotal scheduled bundles:    6\n"
SLOTS = """== CAPACTIY:
MXU, XLU, VALU
4 3 4
== UTILIZATION:
0 0 0
0 0 4
2 0 2
1 0 3
0 0 0
0 0 0
"""
# A grid's loop around a loop of two bundles.
PROGRAM = """= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov 0 /* copy for cssa */ } /* entry bundle: %x.1 */
   0x1 LB: > { %p2 = scmp.ge.s32.totalorder %s3, 1  ;;  %s3 = sphi %s1 }
   0x2 LB: >> { %v4 = vadd.f32 1.0, %v5 }
   0x3   : >> { %6 = sbr.rel (!%p2) target = bundleno = 2 (0x2), region = 5 }
   0x4 PF: > { }
   0x5   :  {}
"""


def _dump(folder, program=PROGRAM, label="peer_rows"):
  stem = f"123-{label}.1"
  texts = {
    f"{stem}-71-{schedule.FINAL}": ANALYSIS,
    f"{stem}-70-{schedule.SLOTS}": SLOTS,
    f"{stem}-72-final_bundles.txt": program,
    f"123-other.1-71-{schedule.FINAL}": ANALYSIS,
  }
  for name, text in texts.items():
    (folder / name).write_text(text)


def test_loops_inside_are_told_from_the_grids():
  assert schedule.loop_depths(PROGRAM) == ([0, 1, 2, 2, 1, 0], 1)
  flat = PROGRAM.replace(">>", ">")
  assert schedule.loop_depths(flat) == ([0, 1, 1, 1, 1, 0], 0)


def test_a_loops_bundles_count_as_often_as_it_runs(tmp_path):
  _dump(tmp_path)
  found = schedule.read(tmp_path, "peer_", trips=10)
  assert (found.bundles, found.written, found.trips) == (24, 6, 10)
  assert found.vector == pytest.approx((4 + 10 * (2 + 3)) / (24 * 4))
  assert found.matrix == pytest.approx(10 * (2 + 1) / (24 * 4))


def test_unrolled_code_counts_once(tmp_path):
  _dump(tmp_path, PROGRAM.replace(">>", ">"))
  found = schedule.read(tmp_path, "peer_", trips=1)
  assert (found.bundles, found.trips) == (6, 1)
  assert found.vector == pytest.approx(9 / 24)


@pytest.mark.parametrize(
  ("program", "trips", "said"),
  [
    (PROGRAM, 1, "whose trips are not known"),
    (PROGRAM.replace("0x3   :", "0x3 LB:"), 10, "2 loops inside"),
    (PROGRAM.replace(">>", ">>>"), 10, "whose trips are not known"),
    (PROGRAM.replace("   0x5   :  {}\n", ""), 10, "files disagree"),
  ],
)
def test_unknown_loops_are_refused(tmp_path, program, trips, said):
  _dump(tmp_path, program)
  with pytest.raises(schedule.ScheduleError, match=said):
    schedule.read(tmp_path, "peer_", trips)


def test_a_missing_or_doubled_dump_is_refused(tmp_path):
  with pytest.raises(schedule.ScheduleError, match="dumped 0 files"):
    schedule.read(tmp_path, "peer_", 1)
  _dump(tmp_path)
  _dump(tmp_path, label="peer_lanes")
  with pytest.raises(schedule.ScheduleError, match="dumped 2 files"):
    schedule.read(tmp_path, "peer_", 1)
