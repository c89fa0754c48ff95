"""The rules that are compared, each as (problem) -> what is timed.

Ours and jax-linear-attention run under `jax.jit`; fla and FlashQLA on torch
tensors that share our buffers. A package that cannot run says why.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.peers import gpu
from experiments.rule_speed.problems import Problem
from neumann_jax import InverseSpec, gated_delta_rule

FORWARD, GRADIENTS = "forward", "with gradients"


class Contender(NamedTuple):
  """One rule."""

  name: str  # what rows call it
  # takes a pass and problems to what times and evaluates it
  prepare: Callable[[str, list[Problem]], "Prepared"]
  reason: str | None = None  # why it cannot run here, or None


class Prepared(NamedTuple):
  """A pass, ready to be timed."""

  call: Callable[..., Any]  # enqueues it
  inputs: list[tuple]  # sets of arguments
  wait: Callable[[Any], object]  # returns once the output it is given is there
  # what the pass holds beside its operands, at most
  peak_mb: Callable[[], float]
  # the output of a call as jax arrays, in the order of the columns
  found: Callable[[Any], list[jax.Array]]


def all_of(spec: InverseSpec, implementation: str) -> list[Contender]:
  """Ours first, then others'."""
  options: Any = {"spec": spec, "implementation": implementation}

  def ours(*operands):
    return gated_delta_rule(*operands, fused=True, **options)[0]

  def theirs(q, k, v, log_decay, beta):
    rule = importlib.import_module("jla.ops").linear_attention
    gates: Any = {"g": log_decay, "beta": beta, "output_final_state": True}
    return rule("gated_deltanet", q, k, v, impl="mosaic_gpu", **gates)[0]

  missing = None
  if jax.default_backend() != "gpu":
    missing = "jla is timed on CUDA devices only"
  elif importlib.util.find_spec("jla") is None:
    missing = "jax-linear-attention is not installed"
  prepare = functools.partial
  fla, flash_qla = "fla.ops.gated_delta_rule", "flash_qla"
  return [
    Contender("neumann_jax", prepare(_in_jax, ours)),
    Contender("jax-linear-attention", prepare(_in_jax, theirs), missing),
    Contender("fla", prepare(_in_torch, fla), gpu.missing("fla")),
    Contender(
      "FlashQLA", prepare(_in_torch, flash_qla), gpu.missing(flash_qla)
    ),
  ]


@functools.cache
def _jitted(rule, which: str):
  """One function a rule and pass, so that equal shapes compile once."""

  def forward(*args):
    return (rule(*args[:5]),)

  def both(*args):
    out, pull = jax.vjp(rule, *args[:5])
    return (out, *pull(args[5]))

  return jax.jit(forward if which == FORWARD else both)


def _in_jax(rule, which: str, problems: list[Problem]) -> Prepared:
  inputs = [tuple(problem) for problem in problems]
  call = _jitted(rule, which)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[0])
  return Prepared(
    call,
    inputs,
    jax.block_until_ready,
    functools.partial(_planned_mb, call, shapes),
    list,
  )


@functools.cache
def _planned_mb(call, shapes) -> float:
  """What the compiler plans to hold: temporaries and results."""
  size = call.lower(*shapes).compile().memory_analysis()
  return (size.temp_size_in_bytes + size.output_size_in_bytes) / 1e6


def _in_torch(package: str, which: str, problems: list[Problem]) -> Prepared:
  # fla would hand the work to FlashQLA where both are installed.
  os.environ.setdefault("FLA_FLASH_QLA", "0")
  torch: Any = importlib.import_module("torch")
  rule = importlib.import_module(package).chunk_gated_delta_rule
  inputs = [tuple(map(gpu.shared, problem)) for problem in problems]

  def forward(*args):
    with torch.inference_mode():
      return (rule(*args[:5])[0],)

  def both(*args):
    leaves = [x.detach().requires_grad_() for x in args[:5]]
    out = rule(*leaves)[0]
    return (out.detach(), *torch.autograd.grad(out, leaves, args[5]))

  call = forward if which == FORWARD else both

  return Prepared(
    call,
    inputs,
    gpu.wait,
    lambda: gpu.peak_bytes(call, *inputs[0]) / 1e6,
    lambda out: list(map(gpu.returned, out)),
  )
