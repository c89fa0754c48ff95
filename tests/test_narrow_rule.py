"""The rule on 16-bit operands: its arithmetic, and the kernel of the state."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from neumann_jax import InverseSpec, RuleOptions, target
from neumann_jax.delta_rule import layout, precision
from neumann_jax.delta_rule.chunks import by_chunks, chunk_scan
from neumann_jax.delta_rule.inputs import Operands
from neumann_jax.delta_rule.kernels import chunk_scan_gpu
from tests import float64_rule, oracles
from tests.oracles import Problem, narrow

CHUNK = 32
FORMATS = ["bfloat16", "float16"]
EXACT = InverseSpec("exact")


@functools.partial(oracles.quick_jit, static_argnames=("chunk_size", "spec"))
def rule(p, segment_ids=None, **options):
  return p.under(neumann_jax.gated_delta_rule, segment_ids, **options)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_family_against_float64(dtype):
  p, rounded = narrow(oracles.problem(100, dk=128, key_heads=1), dtype)
  out, final = rule(p, spec=EXACT)
  assert out.dtype == dtype and final.dtype == jnp.float32
  truth = float64_rule.delta_rule(rounded)
  for found, want in zip((out, final), truth):
    errors = oracles.rms_error(found, want)
    assert errors[0] <= oracles.NARROW_RULE[dtype]
    assert errors.max() <= oracles.NARROW_RULE_ANY[dtype]


@pytest.mark.parametrize("dtype", FORMATS)
def test_operands_are_rounded_and_sums_are_not(dtype):
  x, y = np.float32(np.random.default_rng(0).standard_normal((2, 64, 64)))
  rounded = [np.float64(jnp.asarray(z, dtype)) for z in (x, y)]
  found = precision.einsum("ij,kj->ik", x, y, jnp.dtype(dtype))
  wide = precision.einsum("ij,kj->ik", x, y, jnp.dtype("float32"))
  assert found.dtype == wide.dtype == jnp.float32
  assert oracles.error(found, rounded[0] @ rounded[1].T) <= 1e-6
  assert oracles.error(wide, np.float64(x) @ np.float64(y).T) <= 1e-6
  assert oracles.error(found, wide) > 1e-4


def test_gradients_are_near_those_of_float32():
  """Every product of the backward pass rounds one operand at most."""
  p, _ = narrow(oracles.problem(40, key_heads=1), jnp.bfloat16)
  wide = Problem(*(x.astype(jnp.float32) for x in p))
  rng = np.random.default_rng(3)
  weight = jnp.asarray(np.float32(rng.standard_normal(p.v.shape)))

  @oracles.quick_jit
  def gradient(p):
    def loss(p):
      out, final = p.under(
        functools.partial(neumann_jax.gated_delta_rule, chunk_size=16)
      )
      return jnp.sum(out.astype(jnp.float32) * weight) + jnp.sum(final)

    return jax.grad(loss)(p)

  for found, want in zip(gradient(p), gradient(wide)):
    found = found.astype(jnp.float32)
    assert oracles.rms_error(found, want).max() <= 3e-2


# --- The kernel of the recurrence --------------------------------------------


def inputs(dtype, ids):
  p = oracles.problem(75, ratio=3, dk=16, dv=32)
  p.log_decay[:, 40:60:7] = -np.inf
  p, rounded = narrow(p, dtype)
  arrays = Operands(*map(jnp.asarray, p[:5]))
  chunks, factor = by_chunks.split(arrays, jnp.float32(16**-0.5), ids, CHUNK)
  how = RuleOptions(CHUNK, implementation="xla")
  u, w = by_chunks.split_wy(arrays, chunks, ids, how)
  state = layout.grouped_state(p[5], arrays.k, arrays.v)
  return chunk_scan.Inputs.of(chunks, u, w, factor, state), rounded


@pytest.mark.parametrize(
  "dtype, packed",
  [
    pytest.param("bfloat16", False, marks=pytest.mark.slow),
    ("float16", True),
  ],
)
def test_kernel_and_scan_against_float64(dtype, packed):
  """Tokens that forget everything, borders between documents, no state."""
  ids = oracles.documents(75) if packed else None
  given, rounded = inputs(dtype, ids)
  if packed:
    given = given._replace(state=jnp.zeros_like(given.state))
    zero = np.zeros_like(rounded.initial_state)
    rounded = rounded._replace(initial_state=zero)
  truth = float64_rule.delta_rule(rounded, ids)
  kernel = chunk_scan.OPERATION.kernels["gpu"].launch
  launch = functools.partial(kernel, CHUNK, interpret=True)
  scan = functools.partial(chunk_scan.OPERATION.in_xla, CHUNK)
  for form in (launch, scan):
    out, final = oracles.quick_jit(form)(given)
    out, final = out[:, :75], layout.flat_state(final)
    assert out.dtype == dtype and final.dtype == jnp.float32
    for found, want in zip((out, final), truth):
      errors = oracles.rms_error(found, want)
      assert errors.max() <= oracles.NARROW_RULE_ANY[dtype]


@pytest.mark.parametrize(
  "implementation, fused",
  [
    ("gpu", False),
    ("auto", True),
    pytest.param("gpu", True, marks=pytest.mark.slow),
    pytest.param("auto", False, marks=pytest.mark.slow),
  ],
)
def test_export_from_a_cpu_host(implementation, fused):
  k = jax.ShapeDtypeStruct((1, 130, 2, 128), jnp.bfloat16)
  v = jax.ShapeDtypeStruct((1, 130, 4, 128), jnp.bfloat16)
  gate = jax.ShapeDtypeStruct((1, 130, 4), jnp.float32)
  f = functools.partial(
    neumann_jax.gated_delta_rule, fused=fused, implementation=implementation
  )
  exported = oracles.exported(f, "cuda", k, k, v, gate, gate)
  # The device that `exported` names is an H200.
  hopper = fused and jax.__version_info__ >= (0, 11)
  kernel = "delta_rule_outputs" if hopper else "neumann_state_64"
  assert kernel in exported.mlir_module()


@pytest.mark.parametrize(
  "options, reason",
  [
    ({"dtype": jnp.float32}, "multiplies bfloat16 and float16, not float32"),
    ({"chunk_size": 128}, "chunk size 128 is not one of"),
    ({"dk": 512}, "Dk must be 16, 32, 64, 128 or 256"),
    ({"dv": 24}, "Dv a power of two from 16 up, got 64 and 24"),
    ({"tokens": 2**20}, "an array of 2.31 entries is too large"),
    ({}, None),
    ({"dk": 256, "dv": 256}, None),
  ],
)
def test_what_the_kernel_refuses(options, reason):
  known = {"dtype": jnp.bfloat16, "chunk_size": 64, "dk": 64, "dv": 64}
  known |= {"tokens": 2**10} | options
  k, v = (
    jax.ShapeDtypeStruct((1, known["tokens"], 32, known[d]), jnp.bfloat16)
    for d in ("dk", "dv")
  )
  found = chunk_scan_gpu.refusal(
    known["chunk_size"], jnp.dtype(known["dtype"]), k, v
  )
  assert found is None if reason is None else re.search(reason, found)


@pytest.mark.parametrize(
  "card, chunk_size, refused",
  [
    ("8.0", 64, True),
    ("8.9, 9.0", 64, True),
    ("8.0", 32, False),
    ("9.0", 64, False),
    ("10.0", 64, False),
    (None, 64, False),
  ],
)
def test_keys_of_256_need_a_card_with_room(
  monkeypatch, card, chunk_size, refused
):
  monkeypatch.setattr(target, "cuda_capability", lambda: card)
  narrow, wide = (
    jax.ShapeDtypeStruct((1, 128, 2, d), jnp.bfloat16) for d in (128, 256)
  )
  refusal = functools.partial(
    chunk_scan_gpu.refusal, chunk_size, jnp.dtype(jnp.bfloat16)
  )
  found = refusal(wide, wide)
  assert refusal(narrow, wide) is None
  if refused:
    assert found and found.endswith(f"of 9.0 and up, got {card}")
  else:
    assert found is None
