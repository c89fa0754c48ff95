"""What `lm_accuracy` measures, on what."""

import dataclasses
from collections.abc import Mapping

from experiments.data import sequence_tasks
from experiments.harness.settings import Checked, setting
from experiments.harness.subjects import text_model
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
  """Settings of the study."""

  # "shipped", "random" for a small one of random weights, or the manifest of
  # one that `neumann_jax.shipped.save_model` wrote
  model: str
  # a folder of text, part of which is held out; "" means the standard library
  # of this Python
  data: str
  # tokens of every row; nothing is carried from one row to the next
  window: int = setting(at_least=sequence_tasks.SHORTEST)
  natural_rows: int = setting(at_least=1)  # rows of held-out text
  adversarial_rows: int = setting(at_least=1)  # rows of each adversarial kind
  answers: int = setting(at_least=1)  # least answers of each task
  # names of the inverses whose predictions are compared, see
  # `InverseSpec.parse`
  specs: tuple[str, ...]
  chunk_sizes: tuple[int, ...]  # C under the weights as trained
  weights: tuple[str, ...]  # names of `weight_quantization.matrix.PRESETS`
  quantised_chunk_sizes: tuple[int, ...]  # C under these
  grid_chunk_sizes: tuple[int, ...]  # C of the grid
  grid_orders: tuple[int, ...]  # its N
  grid_terms: tuple[int, ...]  # its S
  # its operand format
  grid_precision: Precision = setting(among=PRECISIONS)  # noqa: RUF009
  grid_rows: int = setting(at_least=1)  # its rows of each kind of text
  # names of `errors.FORMATS`, of the table of errors
  formats: tuple[str, ...] = setting(among=tuple(errors.FORMATS))
  error_chunk_size: int  # its C
  error_matrices: int = setting(at_least=1)  # its matrices of each kind of text
  # rows of each kind whose matrices are captured
  captured_rows: int = setting(at_least=1)
  # names of `errors.FORMATS`
  plan_formats: tuple[str, ...] = setting(among=_NARROW)
  plan_chunk_sizes: tuple[int, ...]  # C of the plans
  # of `neumann_jax.plan`: the largest row sum of |T - X|
  tolerances: tuple[float, ...] = setting(above=0)
  seed: int  # of adversarial text, tasks, samples and random weights

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
