"""The inverse's share of a decoder layer: rows, section and table.

The paper asks it of an Ascend NPU: forward substitution is 25.6 % of a layer,
its products 7.6 %, and the layer is 20 % faster with them.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import layers, rules, schedule
from experiments.tpu_cycles.kernels import TOKAMAX

LADDER = "ladder bfloat16"
INVERSES = ("substitution, rows in lanes", TOKAMAX, LADDER)
WHOLE = f"{LADDER}, all between projections in kernels"
WHOLE_RULE = f"{LADDER}, between projections, {rules.FORWARD}"
BESIDE = (WHOLE_RULE, rules.NORM)
NUMBERS = ("products", "around", "rest", "kernels", "share", "saved")
NORMS = 2  # of the residual stream, in kernels where the rule is one
BATCH = 32  # matrices a grid step of an inverse of its own


def rows(
  kinds: Sequence[str], shape: Shape, tick: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
  """A row for every inverse in the layer on every kind of TPU.

  Args:
    kinds: of TPU, among `schedule.TOPOLOGIES`.
    shape: rows, tokens, key heads and value heads.
    tick: told what comes next.

  Yields:
    The columns of `compare`.
  """
  for kind in kinds:
    xla: dict[str, dict[str, Any]] = {}
    kernels: dict[str, dict[str, Any]] = {}
    for said in schedule.layers(kind, tuple(layers.FORMS), shape):
      _note(said, "layer", kind, xla, tick)
    with tempfile.TemporaryDirectory() as folder:
      dump = pathlib.Path(folder) / "dump"
      dump.mkdir()
      for said in schedule.schedules(
        kind, INVERSES, (BATCH,), dump, BESIDE, shape
      ):
        key = "rule" if "rule" in said else "kernel"
        _note(said, key, kind, kernels, tick)
    yield from compare(kind, xla, kernels, shape)


def _note(
  said: dict[str, Any],
  key: str,
  kind: str,
  found: dict[str, dict[str, Any]],
  tick: Callable[[str], None],
) -> None:
  if "begin" in said:
    tick(f"{kind}: {said['begin']}")
  else:
    found[said[key]] = said


def compare(
  kind: str,
  xla: dict[str, dict[str, Any]],
  kernels: dict[str, dict[str, Any]],
  shape: Shape,
) -> Iterator[dict[str, Any]]:
  """What the layer takes with every inverse.

  Args:
    kind: of TPU.
    xla: by form of the layer, from `schedule.layers`.
    kernels: by name, from `schedule.schedules`.
    shape: as of `rows`.

  Yields:
    kind, inverse: what was compiled, for what; never run on it.
    products, around, rest: millions of cycles that libtpu expects of XLA's
      parts, see `layers.cycles`.
    kernels: millions of bundles of the Pallas kernels.
    share: of the inverse alone, in the sum of these.
    saved: part of the sum with the first of INVERSES that is saved.
    note: why something is missing.
  """
  heads = shape.rows * shape.value_heads
  matrices = heads * -(-shape.tokens // rules.CHUNK_SIZE)
  first = None
  for name in (*INVERSES, WHOLE):
    form = layers.RULE if name == WHOLE else layers.INVERSE
    own = kernels[LADDER if name == WHOLE else name]
    run = [kernels[WHOLE_RULE], *[kernels[rules.NORM]] * NORMS]
    run = run if name == WHOLE else []
    reason = next(
      (x["reason"] for x in (xla[form], own, *run) if "reason" in x), ""
    )
    row = {"kind": kind, "inverse": name, **dict.fromkeys(NUMBERS)}
    if reason:
      yield {**row, "note": reason}
      continue
    parts = xla[form]["cycles"]
    inverse = own["bundles"] / BATCH * matrices
    total = sum(x["bundles"] for x in run) if run else inverse
    everything = sum(parts.values()) + total
    first = everything if name == INVERSES[0] else first
    yield {
      **row,
      "products": parts[layers.PRODUCTS] / 1e6,
      "around": parts[layers.AROUND] / 1e6,
      "rest": parts[layers.REST] / 1e6,
      "kernels": total / 1e6,
      "share": inverse / everything,
      "saved": None if first is None else 1 - everything / first,
      "note": "",
    }


def add(report: Report, frame: pd.DataFrame, shape: Shape) -> None:
  """The section of a report, from `layer_part.md`."""
  page.add(
    report,
    pathlib.Path(__file__).with_suffix(".md"),
    shape=shape,
    width=rules.WIDTH,
    first=INVERSES[0],
    cycles_layer=frame,
  )


def closing(frame: pd.DataFrame) -> str:
  """The table on the terminal."""
  table = frame.drop(columns="note").set_index("inverse")
  digits = dict.fromkeys(NUMBERS[:4], 2) | dict.fromkeys(NUMBERS[4:], 3)
  return (
    "millions of cycles of a decoder layer, compiled, never run\n"
    f"{tables.aligned(table, digits)}"
  )
