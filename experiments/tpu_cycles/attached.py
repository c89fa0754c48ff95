"""The rule on the attached device beside jax's scans, and what was predicted.

For whoever has a TPU: the measured milliseconds stand beside those that the
schedules of the same kernels predict, which no machine of ours could check.
"""

import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import pandas as pd

from experiments.harness.speed import timing
from experiments.rule_speed import problems
from experiments.rule_speed.problems import Shape
from experiments.tpu_cycles import rules, schedule
from neumann_jax import (
  InverseSpec,
  gated_delta_recurrent,
  gated_delta_rule,
)

RULE = "ladder bfloat16, bfloat16 operands, forward"
# As a jax device of each kind is called; megacore v5p gives one device a chip.
DEVICE_KINDS = {
  "TPU v5 lite": "v5e",
  "TPU v5": "v5p",
  "TPU v6 lite": "v6e",
  "TPU7x": "7x",
}
KERNELS = "this library's kernels"
WITHOUT_KERNELS = "implementation 'auto', in XLA here"
# What kernels of a TPU, of Triton and of Mosaic on a GPU are lowered to.
_CALLS = r"custom_call @.*(tpu_custom_call|xla\.gpu\.triton|mosaic_gpu)"


class Prediction(NamedTuple):
  """Milliseconds of the rule's kernels by their schedule.

  Attributes:
    kind: of the attached TPU, None where none of `DEVICE_KINDS` is.
    fast_ms: at the higher of `rules.RATES`; None where nothing was compiled.
    slow_ms: at the lower.
    note: why nothing was compiled, or empty.
  """

  kind: str | None
  fast_ms: float | None
  slow_ms: float | None
  note: str


def predict(shape: Shape) -> Prediction:
  """Compiles the rule for the attached kind of TPU and counts its bundles.

  Args:
    shape: rows, tokens, key heads and value heads.
  """
  kind = DEVICE_KINDS.get(timing.device_name())
  if kind is None:
    known = ", ".join(schedule.TOPOLOGIES)
    return Prediction(None, None, None, f"no TPU among {known} is attached")
  if not schedule.has_compiler():
    return Prediction(kind, None, None, "libtpu is not installed here")
  try:
    said = _compiled(kind, shape)
  except schedule.ScheduleError as error:
    # On the host of a TPU libtpu may refuse a second process: what is measured
    # is worth having without a prediction.
    return Prediction(kind, None, None, str(error))
  if "bundles" not in said:
    return Prediction(kind, None, None, said["reason"])
  slow, fast = (1e3 * said["bundles"] / rate for rate in rules.RATES)
  return Prediction(kind, fast, slow, "")


def _compiled(kind: str, shape: Shape) -> dict[str, Any]:
  """What the compiling process says of the rule."""
  with tempfile.TemporaryDirectory() as folder:
    dump = pathlib.Path(folder) / "dump"
    dump.mkdir()
    *_, said = schedule.schedules(kind, (), (), dump, (RULE,), shape)
  return said


def measure(
  shape: Shape, *, repeats: int = 5, inner: int = 20, seed: int = 0
) -> dict[str, timing.Timing]:
  """Times the rule forward on the attached device, in three forms.

  Args:
    shape: rows, tokens, key heads and value heads.
    repeats: measurements of each form.
    inner: most calls in a measurement.
    seed: of the operands, bfloat16 and of heads of `rules.WIDTH`.

  Returns:
    By form: what "auto" runs on this device, `KERNELS` or `WITHOUT_KERNELS`,
    XLA's scan over chunks, and a scan over tokens.
  """
  operands = [
    problems.draw(shape, dim=rules.WIDTH, seed=seed + i)[:5] for i in range(2)
  ]
  spec = InverseSpec(precision="bfloat16")

  def chunks(implementation):
    return jax.jit(
      lambda *x: gated_delta_rule(
        *x, spec=spec, fused=True, implementation=implementation
      )[0]
    )

  forms = {
    form_of(chunks("auto"), operands[0]): chunks("auto"),
    "jax's scan over chunks": chunks("xla"),
    "jax's scan over tokens": jax.jit(lambda *x: gated_delta_recurrent(*x)[0]),
  }
  return {
    name: timing.measure(form, operands, repeats=repeats, inner=inner)
    for name, form in forms.items()
  }


def form_of(
  program: Any, operands: Sequence[Any], platform: str | None = None
) -> str:
  """`KERNELS` if a program runs some, else `WITHOUT_KERNELS`.

  Args:
    program: jitted.
    operands: of it.
    platform: that it is lowered for, as jax names it; None is the attached one.
  """
  platforms = None if platform is None else (platform,)
  lowered = program.trace(*operands).lower(lowering_platforms=platforms)
  found = re.search(_CALLS, lowered.as_text())
  return WITHOUT_KERNELS if found is None else KERNELS


def table(
  measured: dict[str, timing.Timing], predicted: Prediction
) -> pd.DataFrame:
  """A row a form: measured milliseconds, and those predicted for the kernels.

  Where no kernels ran or none were predicted, the latter have no columns.

  Args:
    measured: by `measure`.
    predicted: by `predict`, of the same shape.
  """
  rows = pd.DataFrame(
    {
      "form": name,
      "median ms": found.median_ms,
      "lowest ms": found.lowest_ms,
      "predicted, at best": predicted.fast_ms if name == KERNELS else None,
      "predicted, at worst": predicted.slow_ms if name == KERNELS else None,
    }
    for name, found in measured.items()
  )
  return rows.dropna(axis="columns", how="all")


def sentence(shape: Shape, predicted: Prediction) -> str:
  """What the numbers of a table are of.

  Args:
    shape: as of `measure`.
    predicted: by `predict`.
  """
  b, t, hk, hv = shape
  prediction = f"predicted for {predicted.kind}"
  if predicted.note:
    prediction = f"nothing is predicted: {predicted.note}"
  return (
    f"{b} x {t} tokens, heads {hk}/{hv} of {rules.WIDTH}; measured on "
    f"{timing.machine()}; {prediction}"
  )
