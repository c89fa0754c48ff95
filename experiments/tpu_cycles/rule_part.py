"""Bundles of the whole rule: its rows, its section of the report, its table."""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from experiments.harness.reporting import page, tables
from experiments.harness.reporting.report import Report
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import rule_errors, rules, schedule

ERROR_TOKENS = 192  # three chunks: a state enters, is changed and leaves
BETAS = (1.0, 2.0)


def rows(
  names: Sequence[str],
  kinds: Sequence[str],
  shape: Sequence[int],
  seed: int,
  tick: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
  """A row for every rule on every kind of TPU.

  Args:
    names: among `rules.NAMES`.
    kinds: of TPU, among `schedule.TOPOLOGIES`.
    shape: rows, tokens, key heads and value heads.
    seed: of the problems whose errors are taken.
    tick: told what comes next.

  Yields:
    kind, rule: what was compiled, for what; never run on it.
    bundles: scheduled, per 64 tokens of a value head, of one token per head;
      None if not compiled.
    millions: of all grid steps, in millions.
    fast_ms, slow_ms: predicted from them, at the two rates of `rules.RATES`.
    hbm_mib: of HBM that the program holds beside arguments and results.
    error_beta_1, error_beta_2: worst error over key families, beta to 1 and 2.
    note: why something is missing.
  """
  errors = {}
  for name in names:
    tick(f"error of {name}")
    errors[name] = [
      rule_errors.errors(name, tokens=ERROR_TOKENS, beta_max=beta, seed=seed)
      for beta in BETAS
    ]
  for kind in kinds:
    for said in _compile(kind, names, shape, tick):
      total = said.get("bundles")
      slow, fast = (
        None if total is None else 1e3 * total / rate for rate in rules.RATES
      )
      yield {
        "kind": kind,
        "rule": said["rule"],
        "bundles": None if total is None else total / said["chunks"],
        "millions": None if total is None else total / 1e6,
        "fast_ms": fast,
        "slow_ms": slow,
        "hbm_mib": said.get("mib"),
        "error_beta_1": errors[said["rule"]][0],
        "error_beta_2": errors[said["rule"]][1],
        "note": said.get("reason", ""),
      }


def _compile(kind, names, shape, tick) -> Iterator[dict[str, Any]]:
  with tempfile.TemporaryDirectory() as folder:
    dump = pathlib.Path(folder) / "dump"
    dump.mkdir()
    for said in schedule.schedules(kind, (), (), dump, names, shape):
      if "begin" in said:
        tick(f"{kind}: {said['begin']}")
      else:
        yield said


def add(report: Report, frame: pd.DataFrame, shape: Shape) -> None:
  """The section of a report, from `rule_part.md`."""
  page.add(
    report,
    pathlib.Path(__file__).with_suffix(".md"),
    shape=shape,
    width=rules.WIDTH,
    cycles_rule=frame.rename(columns=lambda x: x.replace("_", " ")),
  )


def closing(frame: pd.DataFrame) -> str:
  """The table on the terminal: bundles a chunk and head by rule and kind."""
  table = frame.set_index(["rule", "kind"]).bundles.unstack("kind")
  table = table.reindex(index=frame.rule.unique(), columns=frame.kind.unique())
  errors = frame.groupby("rule").error_beta_1.first()
  missing = frame[frame.note != ""]
  digits = dict.fromkeys(table, 1)
  return (
    "bundles per 64 tokens of a value head (one token: per head), compiled, "
    "never run\n"
    f"{tables.aligned(table.assign(error=errors), digits)}"
    + "".join(f"\n{x.rule}, {x.kind}: {x.note}" for x in missing.itertuples())
  )
