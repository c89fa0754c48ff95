"""The envelope, the certificate and the gate-only band on hard chunks."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rounding_table
from experiments.data import key_families
from neumann_jax import inverse
from neumann_jax.chunk_inverse import bounds as nb
from neumann_jax.chunk_inverse import planner, xla
from neumann_jax.chunk_inverse.integer import QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import InverseSpec, resolve
from neumann_jax.delta_rule.chunks.chunk_matrix import chunk_matrices

BETAS = ((0.0, 1.0), (0.6, 1.0), (1.0, 2.0), (2.0, 2.0))


def gates(chunks):
  return tuple(jnp.asarray(np.float32(x)) for x in chunks[1:])


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("family", key_families.FAMILIES)
def test_envelope_bounds_the_inverse(family, beta):
  for decay in key_families.DECAYS:
    c = key_families.draw(
      family, seed=1, count=20, chunk_size=64, beta=beta, decay=decay
    )
    e = np.asarray(nb.envelope(*gates(c)), np.float64)
    assert (np.abs(c.a) <= np.tril(e, -1) * (1 + 1e-5)).all()
    truth = key_families.exact_inverse(c.a)
    assert (np.abs(truth) <= e * (1 + 1e-5)).all()


def test_envelope_is_attained():
  """Identical keys at beta = 2: |T_ij| = 2 everywhere below the diagonal."""
  c = key_families.draw(
    "identical", seed=0, count=1, chunk_size=32, beta=(2.0, 2.0)
  )
  chex.assert_trees_all_close(
    np.abs(key_families.exact_inverse(c.a)),
    np.asarray(nb.envelope(*gates(c)), np.float64),
    rtol=1e-6,
  )


def test_envelope_by_its_formula():
  rng = np.random.default_rng(0)
  beta, g = rng.uniform(0, 2, (3, 16)), -rng.exponential(0.3, (3, 16))
  total = np.cumsum(g, -1)
  n = 1.01
  got = nb.envelope(jnp.float32(beta), jnp.float32(g), key_norm=n)
  got = np.asarray(got)  # indexed 768 times
  for b, i, j in itertools.product(range(3), range(16), range(16)):
    want = float(i == j)
    if i > j:
      growth = max(1.0, beta[b].max() * n**2 - 1) ** (i - j - 1)
      want = beta[b, i] * np.exp(total[b, i] - total[b, j]) * n**2 * growth
    np.testing.assert_allclose(got[b, i, j], want, rtol=2e-5)


@pytest.mark.parametrize("beta", [(0.6, 1.0), (1.0, 2.0)])
def test_key_norm_covers_keys_rounded_to_bfloat16(beta):
  c = key_families.draw(
    "identical", seed=3, count=200, chunk_size=64, dim=16, beta=beta
  )
  rounded = np.asarray(jnp.bfloat16(c.keys), np.float64)
  norm = np.linalg.norm(rounded, axis=-1).max()
  assert norm > 1.0005  # else the test would see nothing
  exact = key_families.Chunks(rounded, c.beta, c.log_decay)
  truth = np.abs(key_families.exact_inverse(exact.a))
  e = np.asarray(nb.envelope(*gates(c), key_norm=float(norm)), np.float64)
  assert (truth <= e * (1 + 1e-5)).all()
  with pytest.raises(ValueError, match="key_norm must be at least 1"):
    nb.envelope(*gates(c), key_norm=0.5)


def test_matrices_carry_the_norm_of_their_keys():
  """Half of all unit keys are longer than 1 once they are bfloat16."""
  c = key_families.draw(
    "identical", seed=3, count=200, chunk_size=64, dim=16, beta=(0.6, 1.0)
  )
  k = jnp.asarray(c.keys, jnp.bfloat16)[:, :, None]  # [B, T, 1, Dk]
  gate = lambda x: jnp.asarray(np.float32(x))[:, :, None]  # noqa: E731
  found = chunk_matrices(k, gate(c.log_decay), gate(c.beta), chunk_size=64)
  norms = np.linalg.norm(np.asarray(k, np.float64)[:, :, 0], axis=-1).max(-1)
  assert 0.4 < np.mean(norms > 1) < 0.6
  carried = np.asarray(found.key_norm[:, 0, 0])
  assert (carried >= np.maximum(norms, 1)).all()
  assert (carried <= np.maximum(norms, 1) * (1 + 1e-5)).all()
  a = np.asarray(found.a, np.float64)[:, 0, 0]
  truth = np.abs(key_families.exact_inverse(a))

  def largest(**norm):
    e = np.asarray(nb.envelope(found.beta, found.log_decay, **norm))[:, 0, 0]
    return (truth / np.where(e > 0, e, np.inf)).max()

  assert largest(key_norm=found.key_norm) <= 1 + 1e-5
  assert largest() > 1.0005  # what a norm of 1 would miss


def test_an_envelope_takes_a_norm_for_each_chunk():
  rng = np.random.default_rng(0)
  beta = jnp.asarray(np.float32(rng.uniform(0, 2, 16)))
  log_decay = jnp.asarray(np.float32(-rng.exponential(0.3, 16)))
  norms = np.float32([1.0, 1.1])
  twice = (jnp.stack([x, x]) for x in (beta, log_decay))
  for found, norm in zip(nb.envelope(*twice, key_norm=norms), norms):
    want = nb.envelope(beta, log_decay, key_norm=float(norm))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def certified_specs():
  forms = [
    {"precision": "float32"},
    {"precision": "tf32"},
    {"precision": "bfloat16"},
    {"precision": "float16"},
    {"quant": QuantSpec(4, "dynamic")},
    {"quant": QuantSpec(8, "dynamic")},
    {"quant": QuantSpec(8, "envelope")},
    {"quant": QuantSpec(16, "dynamic")},
    {"quant": QuantSpec(16, "envelope")},
  ]
  methods = [
    {"method": "ladder"},
    {"method": "ladder", "refine": 1},
    {"method": "newton"},
    {"method": "newton", "order": 3, "residual_steps": 2},
    {"method": "banded"},
    {"method": "banded", "order": 3, "mask_every_step": True},
    {"method": "doubling"},
  ]
  for method, form in itertools.product(methods, forms):
    yield InverseSpec(**method, **form)
  yield InverseSpec("exact")


# Operation by operation: the specs share nearly all of their operations, and
# share no program.
def compute(a, spec, e):
  bound = jnp.max(e, axis=(-2, -1), keepdims=True)
  return xla.invert(resolve(spec, a.shape[-1]), a, bound)


certify = jax.jit(nb.certify)


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_certificate_is_never_violated(count):
  """10,000 draws over families, decays, betas, methods, formats, or a third."""
  draws, finite, useful = 0, 0, 0
  parts = []
  for beta in ((0.0, 1.0), (0.6, 1.0), (1.0, 2.0)):
    chunks = rounding_table.hard_chunks(64, beta, draws=count, seed=7)
    a = np.float32(chunks.a)
    e = nb.envelope(*gates(chunks), key_norm=1 + 1e-6)
    parts.append((a, key_families.exact_inverse(a), np.asarray(e)))
  a, truth, e = map(np.concatenate, zip(*parts))
  a, e = jnp.asarray(a), jnp.asarray(e)
  for spec in certified_specs():
    x = compute(a, spec, e)
    x, bound = np.asarray(x), np.asarray(certify(a, x, e))
    error = np.abs(truth - x.astype(np.float64))
    ok = np.where(np.isfinite(x), error <= bound, np.isinf(bound))
    assert ok.all(), (spec, np.argwhere(~ok)[0])
    draws += len(a)
    finite += int(np.isfinite(bound).all((-1, -2)).sum())
    useful += int((bound.max((-1, -2)) < 1).sum())
  assert draws > 10_000 * count / 3 and finite > 0.8 * draws
  assert useful > 0.2 * draws  # the bound says something, not just infinity


@pytest.mark.parametrize("decay", [0.5, 2.0, 8.0, 40.0])
def test_certificate_holds_where_entries_underflow(decay):
  """Decays of a fresh model: true entries of 1e-38 to 1e-300, envelope 0."""
  for family in key_families.FAMILIES:
    chunks = key_families.draw(
      family, seed=5, count=4, chunk_size=64, beta=(0.6, 2.0), decay=decay
    )
    a = np.float32(chunks.a)
    truth = key_families.exact_inverse(a)
    e = nb.envelope(*gates(chunks), key_norm=1 + 1e-6)
    for spec in (InverseSpec(), InverseSpec("banded", precision="float16")):
      x = compute(a, spec, e)
      x, bound = np.asarray(x), np.asarray(certify(a, x, e))
      assert (np.abs(x - truth) <= bound).all()
      assert (bound > 0).all()


def test_certificate_sees_a_wrong_entry():
  c = key_families.draw("cosine_0.5", seed=0, count=4, chunk_size=32)
  a = np.float32(c.a)
  x = np.float32(key_families.exact_inverse(a))
  clean = nb.certify(a, x, nb.envelope(*gates(c)))
  assert float(clean.max()) < 1e-2
  x[:, 20, 5] += 0.25
  bound = np.asarray(nb.certify(a, x, nb.envelope(*gates(c))))
  assert (bound[:, 20, 5] >= 0.25 * (1 - 1e-5)).all()
  x[1, 3, 2] = np.nan
  assert np.isinf(nb.certify(a, x, nb.envelope(*gates(c)))[1]).any()


def test_truncation_tail_bounds_the_cut_inverse():
  i, j = np.indices((64, 64))
  for family, decay in itertools.product(key_families.FAMILIES, (0.01, 0.1, 1)):
    c = key_families.draw(
      family, seed=2, count=5, chunk_size=64, beta=(0, 2), decay=decay
    )
    truth = key_families.exact_inverse(c.a)
    tail = np.asarray(nb.truncation_tail(nb.envelope(*gates(c))))
    for m in (0, 1, 7, 31, 62, 63):
      cut = np.abs(np.where(i - j > m, truth, 0)).sum(-1).max(-1)
      assert (cut <= tail[:, m] * (1 + 1e-5) + 1e-12).all()
    assert (tail[:, 63] == 0).all()


def test_required_band_is_the_smallest():
  beta = jnp.full((2, 64), 0.9)
  e = nb.envelope(beta, jnp.stack([jnp.full(64, -0.5), jnp.full(64, -2.0)]))
  tail = np.asarray(nb.truncation_tail(e))
  for tolerance in (1.0, 1e-2, 1e-6, 1e-20):
    band = np.asarray(nb.required_band(e, tolerance))
    for b in range(2):
      assert tail[b, band[b]] <= tolerance
      assert band[b] == 0 or tail[b, band[b] - 1] > tolerance
  assert nb.required_band(e, 1e-2)[0] > nb.required_band(e, 1e-2)[1]


@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-1, 1.0])
def test_plan_meets_its_tolerance(decay, precision, tolerance):
  gate = jnp.full((64,), -decay)
  plan = planner.plan(
    64, tolerance=tolerance, precision=precision, log_decay=gate
  )
  if plan.spec.method != "exact":
    assert plan.truncation + plan.rounding <= tolerance
    assert plan.products == xla.count_products(plan.spec, 64)
  for family in key_families.FAMILIES:
    c = key_families.draw(family, seed=5, count=10, chunk_size=64, decay=decay)
    a = np.float32(c.a)
    x = np.asarray(xla.invert(resolve(plan.spec, 64), jnp.asarray(a)))
    rows = np.abs(key_families.exact_inverse(a) - x).sum(-1)
    assert rows.max() <= tolerance


def test_plan_saves_products_under_decay_and_none_without():
  fast = planner.plan(64, tolerance=1e-3, log_decay=jnp.full((64,), -2.0))
  assert fast.spec.method == "newton" and fast.products < 10
  slow = planner.plan(64, tolerance=1e-3)
  assert slow.products == 10 and slow.truncation == 0


def test_plan_falls_back_with_the_reason():
  plan = planner.plan(64, tolerance=1e-6, precision="bfloat16")
  assert plan.spec.method == "exact"
  assert "no product form in bfloat16 meets 1e-06" in plan.reason
  plan = planner.plan(256, tolerance=1.0)
  assert "no rounding figure for float32 at chunk size 256" in plan.reason


def test_plan_refines_when_that_is_what_it_takes():
  plan = planner.plan(64, tolerance=2e-2, quant=QuantSpec(8, "dynamic"))
  assert plan.spec.refine == 1 and plan.products == 12


@pytest.mark.parametrize(
  "kwargs, error, sentence",
  [
    ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
    ({"tolerance": "1"}, TypeError, "tolerance must be a real number, got '1'"),
    ({"tolerance": np.ones(2)}, ValueError, "tolerance must be one number"),
    ({"beta_max": None}, TypeError, "beta_max must be a real number, got None"),
    ({"precision": "int8"}, ValueError, "precision must be one of"),
    ({"beta_max": 2.5}, ValueError, r"beta_max must lie in \(0, 2\]"),
    ({"chunk_size": 48}, ValueError, "chunk_size must be a power of two"),
    (
      {"log_decay": jnp.zeros(32)},
      ValueError,
      r"log_decay must have shape \[..., 64\]",
    ),
    ({"log_decay": jnp.ones(64)}, ValueError, "log_decay must be at most 0"),
    (
      {"log_decay": jnp.full(64, jnp.nan)},
      ValueError,
      "log_decay must be at most 0 everywhere, but it contains NaN",
    ),
  ],
)
def test_plan_refuses_bad_input(kwargs, error, sentence):
  arguments = {"chunk_size": 64, "tolerance": 1e-2} | kwargs
  with pytest.raises(error, match=sentence):
    planner.plan(arguments.pop("chunk_size"), **arguments)


def test_chunk_sizes_of_numpy_are_whole():
  """Were refused by "must be a power of two, got 64"."""
  own, of_numpy = (planner.plan(n, tolerance=0.1) for n in (64, np.int64(64)))
  assert own == of_numpy


@pytest.mark.parametrize(
  "call, words",
  [
    (
      lambda: nb.envelope(jnp.ones(4), jnp.zeros(4), key_norm="1"),
      "key_norm must be a real number, got '1'",
    ),
    (
      lambda: inverse(jnp.zeros((4, 4)), envelope=1.0),
      "envelope must be an array, got float",
    ),
    (lambda: InverseSpec.parse(3), "METHOD .*; got 3"),
  ],
)
def test_other_kinds_are_named(call, words):
  with pytest.raises((TypeError, ValueError), match=words):
    call()


def test_plan_refuses_traced_gates():
  with pytest.raises(TypeError, match="plan runs on the host"):
    jax.jit(lambda g: planner.plan(64, tolerance=1.0, log_decay=g).products)(
      jnp.zeros(64)
    )


@pytest.mark.parametrize("chunk_size", [16, 64])
def test_rounding_table_covers_fresh_draws(chunk_size):
  """The shipped figures against draws that did not make them."""
  for beta in rounding_table.BETAS:
    chunks = rounding_table.hard_chunks(
      chunk_size, rounding_table.BETAS[beta], draws=3, seed=99
    )
    truth = key_families.exact_inverse(np.float32(chunks.a))
    largest = rounding_table.BETAS[beta][1]
    for precision in ("float32", "bfloat16"):
      for method in ("ladder", "newton"):
        spec = InverseSpec(method, precision=precision)
        worst = rounding_table.worst_row_sum(spec, chunks, truth)
        bound = planner.rounding_bound(spec, chunk_size, largest)
        assert worst <= bound <= 20 * worst


@pytest.mark.slow
def test_rounding_table_regenerates():
  fresh = rounding_table.measure(draws=8)["bounds"]
  shipped = planner._table()["bounds"]
  assert fresh.keys() == shipped.keys()
  for key, sizes in fresh.items():
    for size, by_beta in sizes.items():
      for beta, value in by_beta.items():
        assert value <= 1.5 * shipped[key][size][beta], (key, size, beta)


@pytest.mark.parametrize(
  ("beta", "log_decay", "sentence"),
  [
    (jnp.full(4, 3.0), jnp.zeros(4), r"beta must lie in \[0, 2\]"),
    (jnp.full(4, -0.5), jnp.zeros(4), r"beta must lie in \[0, 2\]"),
    (jnp.ones(4), jnp.ones(4), "log_decay must be at most 0"),
    (jnp.ones(4), jnp.zeros(5), "shapes must be equal"),
    (jnp.full(4, jnp.nan), jnp.zeros(4), "beta must .*, but it contains NaN"),
  ],
)
def test_gates_out_of_range_have_no_envelope(beta, log_decay, sentence):
  with pytest.raises(ValueError, match=sentence):
    nb.envelope(beta, log_decay)
