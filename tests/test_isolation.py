"""Documents of a row are kept apart from what is not finite in another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import neumann_jax
from neumann_jax.delta_rule.sequence_parallel import sharded_delta_rule
from neumann_jax.layers.convolution.short_conv import short_conv
from neumann_jax.layers.positions import positions
from neumann_jax.model.decoder import DecoderLayer, Tokens
from tests import models, oracles
from tests.oracles import Problem

# Borders inside of chunks of 16 and at one; ids in any order.
LENGTHS = (7, 9, 13, 19)
IDS = np.repeat(np.int32([3, 1, 2, 0]), LENGTHS)
STARTS = np.cumsum((0, *LENGTHS))
BAD = {"nan": np.nan, "inf": np.inf}


def _sharded(*arrays, initial_state, segment_ids):
  """The rule with its tokens over four devices, borders anywhere."""
  mesh = jax.sharding.Mesh(jax.devices()[:4], ("tokens",))
  token = P(None, "tokens")
  call = jax.shard_map(
    lambda *x: sharded_delta_rule(
      *x[:5],
      axis_name="tokens",
      initial_state=x[5],
      segment_ids=x[6],
      chunk_size=4,
    ),
    mesh=mesh,
    in_specs=(token,) * 5 + (P(), token),
    out_specs=(token, P()),
  )
  return call(*arrays, initial_state, segment_ids)


def _rule(**options):
  return functools.partial(
    neumann_jax.gated_delta_rule, chunk_size=16, **options
  )


FORMS = {
  "xla": _rule(implementation="xla"),
  "auto": _rule(),
  "fused": _rule(fused=True),
  "interpret": _rule(implementation="interpret", fused=True),
  "recurrent": neumann_jax.gated_delta_recurrent,
  "shards": _sharded,
}


# The others share their code with these, and compile longer.
FAST = ("xla", "recurrent", "shards")
EVERY = [
  pytest.param(form, marks=() if form in FAST else pytest.mark.slow)
  for form in FORMS
]


def problem():
  p = oracles.problem(48, key_heads=2, ratio=2, dk=8, dv=8)
  return Problem(*(jnp.asarray(x[:2]) for x in p))


def ids(rows):
  return jnp.asarray(np.tile(IDS, (rows, 1)))


@functools.cache
def _pulled(form):
  """Output, state and all gradients under cotangents of 1, compiled once."""

  @oracles.quick_jit
  def run(p):
    out, pull = jax.vjp(lambda p: p.under(FORMS[form], ids(2)), p)
    return out, pull(jax.tree.map(jnp.ones_like, out))[0]

  return run


def _tokens(document):
  return slice(STARTS[document], STARTS[document + 1])


@pytest.mark.parametrize(
  "name, document, bad",
  [
    ("k", 0, "inf"),
    ("k", 2, "nan"),
    ("v", 0, "inf"),
    ("v", 2, "nan"),
    ("q", 1, "nan"),
    ("log_decay", 1, "nan"),
    ("initial_state", 0, "nan"),
  ],
)
@pytest.mark.parametrize("form", EVERY)
def test_others_keep_their_bits(form, name, document, bad):
  p = problem()
  if name == "initial_state":
    spoilt = p.initial_state.at[0, 1, 2, 3].set(BAD[bad])
  else:
    token = STARTS[document] + 2
    spoilt = getattr(p, name).at[0, token, 0].set(BAD[bad])
  run = _pulled(form)
  (want, state), gradients = run(p)
  (out, found_state), found = run(p._replace(**{name: spoilt}))
  own = _tokens(document)
  # The document knows: its outputs from there on are what they are.
  assert not np.isfinite(out[0, own]).all()
  for a, b in ((out, want), *zip(found[:5], gradients[:5])):
    others = [np.delete(np.array(x), np.r_[own], axis=1) for x in (a, b)]
    np.testing.assert_array_equal(*others)
  np.testing.assert_array_equal(out[1], want[1])  # another row
  # The last document is another one, and so is the state that it leaves.
  np.testing.assert_array_equal(found_state, state)


@pytest.mark.parametrize("form", EVERY)
def test_a_document_is_nan_from_its_bad_token_on(form):
  p = problem()
  token = STARTS[3] + 4
  spoilt = p._replace(v=p.v.at[0, token, 1].set(np.nan))
  (want, _), _ = _pulled(form)(p)
  (out, state), gradients = _pulled(form)(spoilt)
  np.testing.assert_array_equal(out[0, :token], want[0, :token])
  assert np.isnan(out[0, token + 1 :, 1]).all()
  assert np.isnan(state[0, 1]).all()
  # Its heads are as independent as its rows.
  np.testing.assert_array_equal(out[0, :, [0, 2, 3]], want[0, :, [0, 2, 3]])
  if form != "recurrent":
    assert np.isnan(gradients.v[0, token:, 1]).all()


def test_a_document_at_a_border_of_chunks_equals_itself_alone():
  p = problem()
  rows = slice(16, 29)  # the third document
  alone = Problem(*(x[:, rows] for x in p[:5]), jnp.zeros_like(p[5]))
  want, _ = oracles.quick_jit(lambda p: p.under(FORMS["xla"]))(alone)
  spoilt = p._replace(k=p.k.at[:, :16].set(np.nan), v=p.v.at[:, 29:].set(1e30))
  (out, _), _ = _pulled("xla")(spoilt)
  np.testing.assert_array_equal(out[:, rows], want)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_the_convolution_keeps_documents_apart(bad):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 48, 6)), jnp.float32)
  kernel = jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)

  @oracles.quick_jit
  def run(x):
    conv = lambda x: short_conv(  # noqa: E731
      x, kernel, history=jnp.zeros((1, 6, 4)), segment_ids=ids(1)
    )
    (out, kept), pull = jax.vjp(conv, x)
    return out, pull((jnp.ones_like(out), jnp.ones_like(kept)))[0]

  own = np.r_[_tokens(1)]
  clean, found = run(x), run(x.at[0, own[3]].set(bad))
  assert not np.isfinite(found[0][0, own]).all()
  for a, b in zip(found, clean):
    np.testing.assert_array_equal(
      *(np.delete(np.array(y), own, axis=1) for y in (a, b))
    )


@pytest.mark.parametrize(
  "kind",
  [
    pytest.param("linear_attention", marks=pytest.mark.slow),
    "full_attention",
  ],
)
@pytest.mark.parametrize("document", [0, 2])
def test_a_layer_keeps_documents_apart(kind, document):
  """The whole decoder layer, in value and in the gradient of its input."""
  layer, run = _layer(kind)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((1, 48, 64)), jnp.float32)
  own = np.r_[_tokens(document)]
  clean = run(layer, x)
  for bad in BAD.values():
    found = run(layer, x.at[0, own[2], 5].set(bad))
    assert not np.isfinite(found[0][0, own]).all()
    for a, b in zip(found, clean):
      np.testing.assert_array_equal(
        *(np.delete(np.array(y), own, axis=1) for y in (a, b))
      )


@functools.cache
def _layer(kind):
  index = {"linear_attention": 0, "full_attention": 1}[kind]
  rule = neumann_jax.RuleOptions(chunk_size=16)
  with models.drawn_by_numpy():
    layer = DecoderLayer(
      models.CONFIGS["dense"],
      neumann_jax.Execution(rule=rule),
      index,
      rngs=nnx.Rngs(0),
    )
  graph, state = nnx.split(layer)
  known = Tokens(positions(1, 48, segment_ids=ids(1)), ids(1), None)

  @oracles.quick_jit
  def run(state, x):
    out, pull = jax.vjp(lambda x: nnx.merge(graph, state)(x, known)[0], x)
    return out, pull(jnp.ones_like(out))[0]

  return state, run
