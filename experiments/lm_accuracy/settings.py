"""What `lm_accuracy` measures, on what."""

import dataclasses
from collections.abc import Mapping

from experiments.data import sequence_tasks
from experiments.harness import text_model
from experiments.harness.settings import Checked, setting
from experiments.lm_accuracy import errors
from neumann_jax import InverseSpec, RuleOptions
from neumann_jax.chunk_inverse.inverse_spec import (
  PRECISIONS,
  Precision,
  check_chunk_size,
)

_NARROW = tuple(errors.FORMATS)[1:]  # a plan is for what float32 can sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the study.

  Attributes:
    model: "shipped", "random" for a small one of random weights, or the
      manifest of one that `neumann_jax.shipped.save_model` wrote.
    data: a folder of text, part of which is held out; "" means the standard
      library of this Python.
    window: tokens of every row; nothing is carried from one row to the next.
    natural_rows: rows of held-out text.
    adversarial_rows: rows of each adversarial kind.
    answers: least answers of each task.
    specs: names of the inverses whose predictions are compared, see
      `InverseSpec.parse`.
    chunk_sizes: C under the weights as trained.
    weights: names of `weight_quantization.matrix.PRESETS`.
    quantised_chunk_sizes: C under these.
    grid_chunk_sizes: C of the grid.
    grid_orders: its N.
    grid_terms: its S.
    grid_precision: its operand format.
    grid_rows: its rows of each kind of text.
    formats: names of `errors.FORMATS`, of the table of errors.
    error_chunk_size: its C.
    error_matrices: its matrices of each kind of text.
    captured_rows: rows of each kind whose matrices are captured.
    plan_formats: names of `errors.FORMATS`.
    plan_chunk_sizes: C of the plans.
    tolerances: of `neumann_jax.plan`: the largest row sum of |T - X|.
    seed: of adversarial text, tasks, samples and random weights.
  """

  model: str
  data: str
  window: int = setting(at_least=sequence_tasks.SHORTEST)
  natural_rows: int = setting(at_least=1)
  adversarial_rows: int = setting(at_least=1)
  answers: int = setting(at_least=1)
  specs: tuple[str, ...]
  chunk_sizes: tuple[int, ...]
  weights: tuple[str, ...]
  quantised_chunk_sizes: tuple[int, ...]
  grid_chunk_sizes: tuple[int, ...]
  grid_orders: tuple[int, ...]
  grid_terms: tuple[int, ...]
  grid_precision: Precision = setting(among=PRECISIONS)  # noqa: RUF009
  grid_rows: int = setting(at_least=1)
  formats: tuple[str, ...] = setting(among=tuple(errors.FORMATS))
  error_chunk_size: int
  error_matrices: int = setting(at_least=1)
  captured_rows: int = setting(at_least=1)
  plan_formats: tuple[str, ...] = setting(among=_NARROW)
  plan_chunk_sizes: tuple[int, ...]
  tolerances: tuple[float, ...] = setting(above=0)
  seed: int

  def __post_init__(self) -> None:
    super().__post_init__()
    for field in dataclasses.fields(self):
      if field.name.endswith("chunk_sizes"):
        for size in getattr(self, field.name):
          self._check_chunk(field.name, size)
    self._check_chunk("error_chunk_size", self.error_chunk_size)
    for name in self.weights:
      text_model.check_weights(name)
    for name in self.specs:
      for size in (*self.chunk_sizes, *self.quantised_chunk_sizes):
        RuleOptions(size, InverseSpec.parse(name))

  def _check_chunk(self, name: str, size: int) -> None:
    check_chunk_size(size, name=name)
    if not 16 <= size <= self.window:
      raise ValueError(
        f"{name} must be from 16 to the window's {self.window} tokens, got "
        f"{size}"
      )

  def sizes(self) -> Mapping[str, tuple[int, ...]]:
    """Chunk sizes of the predictions by the name of the weights."""
    quantised = dict.fromkeys(self.weights, self.quantised_chunk_sizes)
    return {text_model.AS_TRAINED: self.chunk_sizes} | quantised

  def units(self, layers: int) -> int:
    """How often a study of a model with so many layers ticks."""
    points = 1 + 2 * len(self.grid_orders) * len(self.grid_terms)
    captured = {self.error_chunk_size, *self.plan_chunk_sizes}
    return (
      (len(self.specs) + 1) * sum(map(len, self.sizes().values()))
      + len(self.grid_chunk_sizes) * points
      + len(self.formats) * len(errors.methods(self.error_chunk_size))
      + layers * len(captured)
    )
