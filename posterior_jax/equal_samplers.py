"""Samplers that are equal where their settings are.

`run` compiles a program for every sampler that it has not met, and what builds
a sampler makes closures, each of which equals only itself. Behind
`from_settings` they are made where they are traced, and known by the settings;
arrays are operands of the program, not constants in it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import jax

from posterior_jax.base import Sampler

P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class _Part:
  """`init` or `step` of what `build` makes of settings and arrays."""

  build: Callable[..., Sampler]
  settings: Any
  name: str

  def __call__(
    self, arrays: Mapping[str, jax.Array | None], *arguments: Any
  ) -> Any:
    sampler = self.build(self.settings, **arrays)
    return getattr(sampler, self.name)(*arguments)


def from_settings(build: Callable[P, Sampler]) -> Callable[P, Sampler]:
  """Makes the samplers of a builder equal where its settings are.

  Args:
    build: (settings, name=array or None, ...) -> Sampler. Settings are
      hashable; what is refused is refused of arrays that are not traced.

  Returns:
    The builder. `init` and `step` of its samplers are pytrees of the arrays:
    where settings are equal, and shapes of arrays, `run` compiles once. Those
    of traced settings are part of the program that traces them.
  """
  signature = inspect.signature(build)

  @functools.wraps(build)
  def built(*given: P.args, **named: P.kwargs) -> Sampler:
    _check_settings(signature, given, named)
    # Once as it is: what is refused is refused here, before any tracing.
    sampler = build(*given, **named)
    if any(map(_traced, (*given, *named.values()))):
      # Equal to itself alone: a comparison of traced numbers has no answer, and
      # `jax.jit` would compare all that come later with these.
      return sampler
    bound = signature.bind(*given, **named)
    bound.apply_defaults()
    settings, *values = bound.arguments.values()
    arrays = dict(zip(list(bound.arguments)[1:], values))
    init, step = (
      jax.tree_util.Partial(_Part(build, settings, name), arrays)
      for name in ("init", "step")
    )
    return Sampler(init, step, sampler.num_steps)

  return built


def _check_settings(
  signature: inspect.Signature, given: tuple, named: Mapping[str, Any]
) -> None:
  """Raises TypeError where the first argument is no record of its type."""
  name, parameter = next(iter(signature.parameters.items()))
  kind = parameter.annotation
  config = given[0] if given else named.get(name, parameter.default)
  if not isinstance(kind, type) or config is parameter.empty:
    return
  if not isinstance(config, kind):
    raise TypeError(
      f"{name} must be an instance of {kind.__name__}, got "
      f"{type(config).__name__}"
    )


def _traced(settings: Any) -> bool:
  """Whether a record, or one inside of it, holds a traced number."""
  if dataclasses.is_dataclass(settings):
    values = (getattr(settings, f.name) for f in dataclasses.fields(settings))
    return any(map(_traced, values))
  return isinstance(settings, jax.core.Tracer)
