"""The rule on the attached device beside jax's scans, and what was predicted.

For whoever has a TPU: the measured milliseconds stand beside those that the
schedules of the same kernels predict, which no machine of ours could check.
"""

import importlib.util
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import pandas as pd

from experiments.harness import timing
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


class Prediction(NamedTuple):
  """Milliseconds of the rule's kernels by their schedule.

  Attributes:
    kind: of TPU that libtpu compiled for.
    fast_ms: at the higher of `rules.RATES`; None where nothing was compiled.
    slow_ms: at the lower.
    note: why nothing was compiled, or empty.
  """

  kind: str
  fast_ms: float | None
  slow_ms: float | None
  note: str


def predict(shape: Shape, *, without_tpu: str = "v6e") -> Prediction:
  """Compiles the rule for the attached kind of TPU and counts its bundles.

  Args:
    shape: rows, tokens, key heads and value heads.
    without_tpu: the kind, among `schedule.TOPOLOGIES`, where none of them is
      attached.
  """
  kind = DEVICE_KINDS.get(timing.device_name(), without_tpu)
  if importlib.util.find_spec("libtpu") is None:
    return Prediction(kind, None, None, "libtpu is not installed here")
  said = _compiled(kind, shape)
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
    By form: the kernels of this device's platform where it has some, XLA's
    scan over chunks, and a scan over tokens.
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
    "this library's kernels": chunks("auto"),
    "jax's scan over chunks": chunks("xla"),
    "jax's scan over tokens": jax.jit(lambda *x: gated_delta_recurrent(*x)[0]),
  }
  return {
    name: timing.measure(form, operands, repeats=repeats, inner=inner)
    for name, form in forms.items()
  }


def table(
  measured: dict[str, timing.Timing], predicted: Prediction
) -> pd.DataFrame:
  """A row a form: measured milliseconds, and those predicted for the kernels.

  Args:
    measured: by `measure`.
    predicted: by `predict`, of the same shape.
  """
  kernels = next(iter(measured))
  return pd.DataFrame(
    {
      "form": name,
      "median ms": found.median_ms,
      "lowest ms": found.lowest_ms,
      "predicted, at best": predicted.fast_ms if name == kernels else None,
      "predicted, at worst": predicted.slow_ms if name == kernels else None,
    }
    for name, found in measured.items()
  )


def sentence(shape: Shape, predicted: Prediction) -> str:
  """What the numbers of a table are of.

  Args:
    shape: as of `measure`.
    predicted: by `predict`.
  """
  b, t, hk, hv = shape
  there = DEVICE_KINDS.get(timing.device_name()) == predicted.kind
  return (
    f"{b} x {t} tokens, heads {hk}/{hv} of {rules.WIDTH}; measured on "
    f"{timing.machine()}; predicted for {predicted.kind}, which is "
    f"{'' if there else 'not '}attached"
    + (f"; nothing is predicted: {predicted.note}" if predicted.note else "")
  )
