"""u = T (beta v), w = T (beta exp(G) k): in XLA and in fused kernels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neumann_jax
from neumann_jax import InverseSpec, QuantSpec, RuleOptions
from neumann_jax.delta_rule.chunks import wy
from tests import float64_rule, oracles
from tests.oracles import assert_close

CHUNK = 32
BF16 = InverseSpec(precision="bfloat16")
# bfloat16 operands: T and what it multiplies are each rounded once (2^-8), the
# bfloat16 ladder adds its own 1e-2, the result is rounded once more.
NARROW = oracles.DESIGN_TABLE[0]["bfloat16"] * 2


def truth(p, segment_ids=None):
  """u and w from the token loop in float64, by their definition."""
  _, k, v, keep, beta = float64_rule._delta_rule_arrays(*p[:5], segment_ids)
  u, w = np.zeros(v.shape), np.zeros((*v.shape[:3], k.shape[-1]))
  for start in range(0, v.shape[1], CHUNK):
    at = slice(start, min(start + CHUNK, v.shape[1]))
    n = at.stop - at.start
    decay = np.ones((v.shape[0], n, n, v.shape[2]))
    for i in range(n):
      for j in range(i):
        decay[:, i, j] = np.prod(keep[:, start + j + 1 : start + i + 1], axis=1)
    gram = np.einsum("bihd,bjhd->bijh", k[:, at], k[:, at])
    a = np.tril(np.moveaxis(beta[:, at][:, :, None] * gram * decay, -1, 1), -1)
    t = np.linalg.inv(np.eye(n) + a)
    enter = np.cumprod(keep[:, at], axis=1)
    scaled = beta[:, at, :, None] * v[:, at]
    u[:, at] = np.einsum("bhij,bjhd->bihd", t, scaled)
    scaled = (beta[:, at] * enter)[..., None] * k[:, at]
    w[:, at] = np.einsum("bhij,bjhd->bihd", t, scaled)
  return u, w


@functools.cache
def problem(reset=False):
  p = oracles.problem(75, ratio=3, dk=16, dv=32)
  if reset:
    p.log_decay[:, 40:60:7] = -np.inf
    p.log_decay[:, 20] = -50.0
  return p


def arrays(p, dtype=jnp.float32):
  gates = [jnp.asarray(x) for x in p[3:5]]
  return [jnp.asarray(p.k, dtype), jnp.asarray(p.v, dtype), *gates]


@functools.partial(oracles.quick_jit, static_argnums=(5, 6))
def fused(k, v, log_decay, beta, segment_ids, spec, how):
  """The three computations under one signature."""
  if how == "gpu":
    options = RuleOptions(CHUNK, spec, fused=True)
    return wy.OPERATION.kernels["gpu"].launch(
      options, k, v, log_decay, beta, segment_ids, interpret=True
    )
  return neumann_jax.wy_representation(
    *(k, v, log_decay, beta),
    segment_ids=segment_ids,
    chunk_size=CHUNK,
    spec=spec,
    implementation=how,
  )


@pytest.mark.parametrize(
  "how, packed",
  [
    pytest.param(
      *case, marks=pytest.mark.slow if case == ("interpret", False) else []
    )
    for case in itertools.product(
      ("auto", "xla", "interpret", "gpu"), (False, True)
    )
  ],
)
def test_float32_against_the_definition(how, packed):
  """A border between documents is a token that forgets to the GPU kernel."""
  p = problem()
  ids = oracles.documents(75) if packed else None
  found = fused(*arrays(p), ids, InverseSpec(), how)
  limit = 4e-4 if packed and how == "gpu" else oracles.FLOAT32_RULE
  assert_close(found, truth(p, ids), limit)


@pytest.mark.parametrize(
  "how", [pytest.param("interpret", marks=pytest.mark.slow), "gpu"]
)
def test_bfloat16_against_the_definition(how):
  p = problem()
  narrow = arrays(p, jnp.bfloat16)
  rounded = p._replace(
    k=np.asarray(narrow[0], np.float32), v=np.asarray(narrow[1], np.float32)
  )
  found = fused(*narrow, None, BF16, how)
  assert all(x.dtype == jnp.bfloat16 for x in found)
  found = [x.astype(jnp.float32) for x in found]
  assert_close(found, truth(rounded), NARROW)


@pytest.mark.parametrize(
  "how", ["xla", pytest.param("interpret", marks=pytest.mark.slow), "gpu"]
)
def test_tokens_that_forget(how):
  """The GPU kernel sums 16 exponents: accurate to 4e-4 behind a reset."""
  p = problem(reset=True)
  found = fused(*arrays(p), None, InverseSpec(), how)
  assert_close(found, truth(p), 4e-4 if how == "gpu" else oracles.FLOAT32_RULE)


@pytest.mark.parametrize("implementation", ["auto", "interpret"])
def test_the_rule_with_a_fused_kernel(implementation):
  p, ids = problem(), oracles.documents(75)
  form = functools.partial(
    neumann_jax.gated_delta_rule,
    chunk_size=CHUNK,
    fused=True,
    implementation=implementation,
  )
  found = oracles.quick_jit(lambda p: p.under(form, ids))(p)
  assert_close(found, float64_rule.delta_rule(p, ids), oracles.FLOAT32_RULE)


def test_gradients_are_those_of_the_unfused_rule():
  p = problem()

  def gradient(fused):
    # What it is compared with needs no kernels traced beside it.
    implementation = "auto" if fused else "xla"

    def loss(p):
      out, state = p.under(
        functools.partial(
          neumann_jax.gated_delta_rule,
          chunk_size=CHUNK,
          fused=fused,
          implementation=implementation,
        )
      )
      return jnp.sum(jnp.sin(out)) + jnp.sum(state)

    return oracles.quick_jit(jax.grad(loss))(p)

  assert_close(gradient(True), gradient(False), oracles.FLOAT32_RULE_GRADIENT)


@pytest.mark.parametrize(
  "platform, implementation, call",
  [
    ("tpu", "tpu", "tpu_custom_call"),
    ("cuda", "gpu", oracles.GPU_CALL),
    ("cuda", "auto", oracles.GPU_CALL),
  ],
)
def test_export_from_a_cpu_host(platform, implementation, call):
  k = jax.ShapeDtypeStruct((1, 130, 2, 128), jnp.bfloat16)
  v = jax.ShapeDtypeStruct((1, 130, 4, 128), jnp.bfloat16)
  gate = jax.ShapeDtypeStruct((1, 130, 4), jnp.float32)
  f = functools.partial(
    neumann_jax.wy_representation, spec=BF16, implementation=implementation
  )
  exported = oracles.exported(f, platform, k, v, gate, gate)
  assert call in exported.mlir_module()


@pytest.mark.parametrize(
  "options, sentence",
  [
    ({"implementation": "gpu", "chunk_size": 128}, "chunk size 128 is not one"),
    ({"implementation": "gpu", "chunk_size": 8}, "chunk size 8 is not one of"),
    (
      {"implementation": "tpu", "spec": InverseSpec(quant=QuantSpec(8))},
      "a fused kernel has no envelope",
    ),
    (
      {
        "implementation": "gpu",
        "spec": InverseSpec(quant=QuantSpec(8, "dynamic", integer=True)),
      },
      "too narrow for int8",
    ),
    (
      {"implementation": "tpu", "spec": InverseSpec(precision="tf32")},
      "a TPU has no tf32 products",
    ),
    ({"implementation": "cuda"}, "implementation must be one of"),
    ({"implementation": "tpu"}, "runs on tpu only, but the program is lowered"),
    ({"chunk_size": 48}, "chunk_size must be a power of two, got 48"),
  ],
)
def test_refusals(options, sentence):
  p = problem()
  with oracles.refused(ValueError, sentence):
    neumann_jax.wy_representation(*arrays(p), **options)
  with oracles.refused(ValueError, sentence):
    neumann_jax.gated_delta_rule(p.q, *arrays(p), fused=True, **options)
