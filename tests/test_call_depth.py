"""How far a reader walks from the public rule to the method that inverts."""

import collections
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import neumann_jax

ROOT = pathlib.Path(neumann_jax.__file__).parent
ALGORITHM = "chunk_inverse/methods.py", "invert"


def _own(frame):
  """(file, function) of a frame of the package, or None."""
  path = pathlib.Path(frame.f_code.co_filename)
  if not path.is_relative_to(ROOT):
    return None
  return path.relative_to(ROOT).as_posix(), frame.f_code.co_name


@functools.cache
def _walk(implementation):
  """The frames at the algorithm, and how often each function was called."""
  stacks, calls = [], collections.Counter()

  def watch(frame, event, _):
    at = _own(frame) if event == "call" else None
    if at is None:
      return
    calls[at] += 1
    if at == ALGORITHM:
      stack = []
      while frame is not None:
        stack.append(_own(frame))
        frame = frame.f_back
      stacks.append([at for at in reversed(stack) if at])

  k, gate = jnp.ones((1, 40, 2, 8)), jnp.zeros((1, 40, 2))
  jax.clear_caches()
  sys.setprofile(watch)
  try:
    jax.make_jaxpr(
      lambda *arrays: neumann_jax.gated_delta_rule(
        *arrays, chunk_size=32, implementation=implementation
      )
    )(k, k, k, gate, gate)
  finally:
    sys.setprofile(None)
  return stacks, calls


@pytest.mark.parametrize(
  "implementation", ["xla", pytest.param("auto", marks=pytest.mark.slow)]
)
def test_few_frames_lie_between_the_rule_and_the_algorithm(implementation):
  """With "auto" as well, which leaves kernels to the lowering for their own."""
  stacks, _ = _walk(implementation)
  stack = min(stacks, key=len)
  assert stack[0] == ("delta_rule/api.py", "gated_delta_rule")
  assert len(stack) <= 6, stack
  assert len({file for file, _ in stack}) <= 6, stack


def test_options_are_resolved_and_gates_summed_once():
  _, calls = _walk("xla")
  for function in (
    ("chunk_inverse/inverse_spec.py", "resolve"),
    ("delta_rule/inputs.py", "check"),
    ("delta_rule/gates.py", "chunk_gates"),
    ("delta_rule/layout.py", "split"),
    ("delta_rule/layout.py", "split_documents"),
    ("chunk_inverse/masks.py", "decay_matrix"),
  ):
    assert calls[function] == 1, function
  # q and k once each; v once, and through it each gate.
  assert calls["delta_rule/layout.py", "split_keys"] == 2
  assert calls["delta_rule/layout.py", "split_values"] == 3
  # The outputs, and nothing between the inverse and the scan.
  assert calls["delta_rule/layout.py", "merge_values"] == 1
