"""How a model is computed: one record; each layer takes what it reads of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from neumann_jax.checks import floating_dtype, plain_numbers
from neumann_jax.delta_rule.options import RuleOptions

ATTENTION = ("auto", "tpu", "gpu", "xla")
REMAT = ("none", "names", "dots", "full")
# What a model can change after it was made; the rest is in its parameters.
CHANGEABLE = ("rule", "attention", "query_block", "remat")


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a model is computed; its parameters mean the same under any.

  Attributes:
    dtype: of activations and products. Norms, gates, softmax, router, states
      and logits are float32 whatever it is.
    param_dtype: of parameters, except A_log and dt_bias, which are float32.
    rule: how the linear layers compute the gated delta rule; its
      `sequence_axis` splits the tokens of the whole model.
    attention: what computes full attention. "gpu": cuDNN, whose gradients
      differ in their last bits from call to call; "tpu": splash attention;
      "xla": products under a mask; "auto": the platform's where it can run,
      else "xla", logged once. Where a mesh axis splits the tokens, a library
      takes whole rows of the heads of a device. A single token, and a call that
      goes on from what a cache holds, are computed in XLA under any. A
      library's attention has reverse derivatives only. For documents and
      padding cuDNN takes a mask and a bias of 3 T^2 bytes a row, and 2 T^2 more
      with gradients; beyond 8192 tokens that is refused ("auto" takes XLA), and
      a prompt with padding before its tokens meets its cache in XLA. jax asks
      the host that traces for cuDNN, so that "gpu" is refused on one without
      it.
    query_block: in XLA full attention takes so many queries at a time, so that
      its memory grows with T and not with T^2.
    scan_layers: holds the parameters of equal layers as one stack and runs it
      by `lax.scan`: one compilation for any depth.
    remat: what the backward pass computes again, a layer at a time: "none",
      "names" (everything but the rule, which does not run forward again: its
      outputs are kept and, by kernels that give them, inverses of chunks, in
      XLA and on a TPU the states before chunks; what needs no state is computed
      again in XLA and by Triton; where a `sequence_axis` splits the tokens of a
      mesh with other axes the rule does run again), "dots" (everything but
      products with weights) or "full".

  Raises:
    TypeError: for an option of another type.
    ValueError: for a value out of range.

  Example:
    >>> import neumann_jax as nj
    >>> execution = nj.Execution(rule=nj.RuleOptions(chunk_size=32))
    >>> execution.rule.chunk_size, execution.remat
    (32, 'none')
    >>> nj.Execution(remat="some")
    Traceback (most recent call last):
      ...
    ValueError: remat must be one of none, names, dots, full, got 'some'
  """

  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  rule: RuleOptions = RuleOptions()  # noqa: RUF009  (frozen)
  attention: Literal["auto", "tpu", "gpu", "xla"] = "auto"
  # Scores of 1024 queries and 32768 keys are 128 MiB a head in float32.
  query_block: int = 1024
  scan_layers: bool = False
  remat: Literal["none", "names", "dots", "full"] = "none"

  def __post_init__(self) -> None:
    """Raises TypeError or ValueError for an option that cannot be."""
    plain_numbers(self)
    for name in ("dtype", "param_dtype"):
      # "bfloat16", jnp.bfloat16 and its dtype are one option, and must hash so.
      value = floating_dtype(name, getattr(self, name))
      object.__setattr__(self, name, value)
    if not isinstance(self.rule, RuleOptions):
      raise TypeError(
        f"rule must be a RuleOptions, as RuleOptions(chunk_size=64), got "
        f"{self.rule!r}"
      )
    if not isinstance(self.scan_layers, bool):
      raise TypeError(
        f"scan_layers must be True or False, got {self.scan_layers!r}"
      )
    if self.query_block < 1:
      raise ValueError(
        f"query_block must be at least 1, got {self.query_block}"
      )
    for name, known in (("attention", ATTENTION), ("remat", REMAT)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} must be one of {', '.join(known)}, got "
          f"{getattr(self, name)!r}"
        )

  @property
  def sequence_axis(self) -> str | None:
    """The mesh axis that splits the tokens, as the rule has it."""
    return self.rule.sequence_axis


def check_execution(execution: Execution) -> None:
  """Raises TypeError unless it is one."""
  if not isinstance(execution, Execution):
    raise TypeError(
      'execution must be an Execution, as Execution(param_dtype="bfloat16"), '
      f"got {execution!r}"
    )


def changed(execution: Execution, changes: Mapping[str, Any]) -> Execution:
  """An execution with other values of what a model can change.

  Args:
    execution: the one there is.
    changes: by name, of `CHANGEABLE` or of the fields of `RuleOptions`.

  Raises:
    ValueError: for a field that cannot change, or a value out of range.
  """
  of_rule = tuple(field.name for field in dataclasses.fields(RuleOptions))
  known = (*CHANGEABLE, *of_rule)
  for name in changes:
    if name not in known:
      raise ValueError(f"with_execution changes {', '.join(known)}, not {name}")
  whole = {name: x for name, x in changes.items() if name in CHANGEABLE}
  options = {name: x for name, x in changes.items() if name in of_rule}
  execution = dataclasses.replace(execution, **whole)
  rule = dataclasses.replace(execution.rule, **options)
  return dataclasses.replace(execution, rule=rule)
