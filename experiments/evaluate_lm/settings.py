"""What `evaluate_lm` evaluates, on what."""

import dataclasses
import itertools
from typing import NamedTuple

from experiments.harness.settings import DTYPES, Checked, setting
from experiments.harness.subjects import text_model
from neumann_jax import InverseSpec, RuleOptions
from neumann_jax.chunk_inverse.inverse_spec import check_chunk_size

EXACT = "exact float32"  # the inverse that all others are compared with


class Case(NamedTuple):
  """One combination of the sweep."""

  weights: str  # "none", or a name of `weight_quantization.matrix.PRESETS`
  chunk_size: int  # C
  spec: str  # name of the inverse
  rule: RuleOptions  # how the delta rule is computed with it

  @property
  def key(self) -> tuple[str, int, str]:
    """What its rows begin with: weights, chunk size, name of the inverse."""
    return self[:3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Settings of the evaluation."""

  # a Hugging Face folder, or "random" for a small model of random weights and
  # slow decays, which knows nothing: for the tests
  checkpoint: str
  text: str  # a UTF-8 file; "" means sources of the Python standard library
  # of the text, from its beginning; 0 means all
  max_tokens: int = setting(at_least=0)
  # tokens that a prediction can see, and its own: the text is cut into
  # independent windows, nothing is carried from one to the next
  window: int = setting(at_least=2)
  batch: int = setting(at_least=1)  # windows computed at a time
  # names of the inverses, see `InverseSpec.parse`, or such a name after "xla ",
  # which stays there; "exact float32" is evaluated whether named or not
  specs: tuple[str, ...] = setting(some=True, distinct=True)
  # C, powers of two
  chunk_sizes: tuple[int, ...] = setting(some=True, distinct=True)
  # "none" for the weights as trained, or a name of
  # `weight_quantization.matrix.PRESETS`
  weights: tuple[str, ...] = setting(some=True, distinct=True)
  # windows whose chunk matrices are inverted in float64
  inverse_windows: int = setting(at_least=1)
  # of `neumann_jax.plan`: the largest row sum of |T - X|
  tolerance: float = setting(above=0)
  implementation: str  # of the inverse
  # of activations and of parameters
  dtype: str = setting(among=DTYPES)
  seed: int  # of random weights

  def __post_init__(self) -> None:
    super().__post_init__()
    self.check_chunks(self.window, "the window's")
    for name in self.weights:
      text_model.check_weights(name)
    self.cases()

  def check_chunks(self, tokens: int, whose: str) -> None:
    """Raises ValueError for a chunk longer than `tokens`."""
    for size in self.chunk_sizes:
      check_chunk_size(size, name="chunk_sizes")
      if size > tokens:
        raise ValueError(
          f"chunk_sizes must be at most {whose} {tokens} tokens, got {size}"
        )

  def cases(self) -> list[Case]:
    """The sweep, weights outermost; the exact inverse first."""
    names = dict.fromkeys((EXACT, *self.specs))
    return [
      Case(weights, size, name, self._rule(name, size))
      for weights, size, name in itertools.product(
        self.weights, self.chunk_sizes, names
      )
    ]

  def _rule(self, name: str, size: int) -> RuleOptions:
    spec = InverseSpec.parse(name.removeprefix("xla "))
    where = "xla" if name.startswith("xla ") else self.implementation
    return RuleOptions(size, spec, implementation=where)
