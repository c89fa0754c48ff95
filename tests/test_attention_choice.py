"""Which attention a call takes, what it is given, and what is refused."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import neumann_jax
from neumann_jax import sharding, target
from neumann_jax.layers import attention, call_attention
from neumann_jax.layers.kernels import library_attention
from neumann_jax.layers.positions import PADDING, Positions, positions
from tests import models, oracles
from tests.attention_operands import MESH_AXES, in_blocks, operands

LENGTH = 24


@pytest.fixture
def calls(monkeypatch):
  """A host with a GPU whose attention is products under a mask."""
  found = []

  def library(q, k, v, documents=None):
    found.append(documents is not None)
    mask = None
    if documents is not None:
      mask = library_attention._same(documents)
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)

  monkeypatch.setattr(target, "platform", lambda: "cuda")
  monkeypatch.setattr(library_attention, "refusal", lambda *_, **__: None)
  monkeypatch.setattr(
    library_attention, "_run", lambda name, elsewhere: library
  )
  return found


# --- On meshes ---------------------------------------------------------------


def test_fewer_key_heads_than_devices_still_split_the_queries(calls):
  """Each device its own queries and the key heads that they read."""
  mesh = sharding.make_mesh(tensor=4)
  where = jax.NamedSharding(mesh, jax.P(None, None, "tensor"))
  q, k, v = operands(16, dim=8, heads=(8, 2), dtype=jnp.float32)
  want = in_blocks(q, k, v, None)
  q = jax.device_put(q, where)
  shapes = []

  def library(q, k, v, documents):
    shapes.append((q.shape[2], k.shape[2]))
    return in_blocks(q, k, v, documents)

  attend = functools.partial(library_attention._on_mesh, library, MESH_AXES)
  found = jax.jit(attend)(q, k, v, None)
  assert shapes == [(2, 1)]
  oracles.assert_close(found, want, oracles.FLOAT32_BLOCK)


def test_heads_that_an_axis_does_not_divide_are_no_librarys(calls, caplog):
  mesh = sharding.make_mesh(tensor=4)
  q, k, _ = jax.device_put(
    operands(16, heads=(2, 2)), jax.NamedSharding(mesh, jax.P())
  )
  choose = lambda name: library_attention.choose(  # noqa: E731
    name, q, k, None, MESH_AXES, in_blocks
  )
  sentence = "mesh axis 'tensor' of 4 does not divide 2 heads"
  with oracles.refused(ValueError, sentence):
    choose("gpu")
  library_attention._log_fallback.cache_clear()
  with caplog.at_level("INFO"):
    assert choose("auto") is None
  assert sentence in caplog.text


def over_tokens(name, heads, ids, around=None):
  """A call on four shards of the tokens, and cotangents of its operands."""
  mesh = sharding.make_mesh(sequence=4, data=2)
  token = jax.P("data", "sequence")

  def shard(q, k, v, ids):
    attend = library_attention.choose(
      *(name, q, k, "sequence", MESH_AXES, in_blocks), around=around
    )
    return attend(q, k, v, ids)

  def step(*args):
    on_all = jax.shard_map(
      shard, mesh=mesh, in_specs=(token,) * 4, out_specs=token
    )
    out, pull = jax.vjp(lambda *args: on_all(*args, ids), *args)
    return out, *pull(jnp.sin(out))

  args = operands(16, dim=8, rows=2, heads=heads, dtype=jnp.float32)
  return args, jax.jit(step)(*args)


@pytest.mark.parametrize("heads", [(8, 4), (8, 2), (4, 1)])
def test_shards_of_tokens_change_them_for_heads(calls, heads):
  """Each device attends to whole rows, key heads as often as it takes."""
  ids = jnp.asarray([[4] * 7 + [2] * 9, [1] * 16], jnp.int32)
  shapes = []

  def around(attend):
    def call(q, k, v, documents):
      shapes.append((q.shape, k.shape, documents.shape))
      return attend(q, k, v, documents)

    return call

  args, found = over_tokens("gpu", heads, ids, around)
  assert calls
  own = heads[0] // 4
  assert shapes[0] == ((1, 16, own, 8), (1, 16, 1, 8), (1, 16))
  out, pull = jax.vjp(lambda *args: in_blocks(*args, ids), *args)
  want = out, *pull(jnp.sin(out))
  for one, other in zip(found, want, strict=True):
    oracles.assert_close(one, other, oracles.FLOAT32_BLOCK)


def test_heads_that_shards_do_not_divide_are_no_librarys(calls):
  sentence = "mesh axis 'sequence' of 4 splits the tokens and does not divide 6"
  with oracles.refused(ValueError, sentence):
    over_tokens("gpu", (6, 2), jnp.zeros((2, 16), jnp.int32))


# --- Which attention a call takes --------------------------------------------


def tokens(rows=2, length=LENGTH, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, models.VOCABULARY, (rows, length)).astype(np.int32)


@models.drawn_by_numpy()
def layer(implementation):
  execution = neumann_jax.Execution(attention=implementation)
  return attention.GatedAttention(
    models.CONFIGS["dense"], execution, rngs=nnx.Rngs(0)
  )


def attended(implementation, x, **options):
  """The outputs of a layer, see `_attended`."""
  graph, state = nnx.split(layer(implementation))
  run = lambda state, x: _attended(nnx.merge(graph, state), x, **options)  # noqa: E731
  return jax.jit(run)(state, x)


def _attended(layer, x, *, left=0, pieces=1, **options):
  """Without a cache, or through one in some pieces."""
  mask = None
  if left:
    mask = jnp.arange(x.shape[1])[None] >= left
    mask = jnp.broadcast_to(mask, x.shape[:2])
  if pieces == 0:
    where = positions(*x.shape[:2], mask=mask, **options)
    return layer(x, positions=where, mask=mask, **options)[0]
  cache = layer.init_cache(x.shape[0], LENGTH)
  stored, found = jnp.zeros(x.shape[0], jnp.int32), []
  for part in np.array_split(np.arange(x.shape[1]), pieces):
    some = None if mask is None else mask[:, part]
    where = positions(x.shape[0], len(part), stored=stored, mask=some)
    out, cache = layer(x[:, part], positions=where, cache=cache, mask=some)
    stored += len(part) if some is None else some.sum(axis=1)
    found.append(out)
  return jnp.concatenate(found, axis=1)


@pytest.mark.parametrize(
  ("pieces", "left"),
  [
    (0, 5),
    (1, 0),
    (2, 5),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in ((0, 0), (1, 5), (2, 0))
    ),
  ],
)
def test_a_library_sees_what_the_xla_form_sees(calls, pieces, left):
  x = np.random.default_rng(0).standard_normal((2, LENGTH, 64), np.float32)
  found = attended("auto", x, pieces=pieces, left=left)
  assert calls
  del calls[:]
  want = attended("xla", x, pieces=pieces, left=left)
  assert not calls
  oracles.assert_close(found[:, left:], want[:, left:], oracles.FLOAT32_BLOCK)


@pytest.mark.parametrize(
  "bad",
  [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (None, np.inf))],
)
def test_a_library_keeps_documents_apart(calls, bad):
  """In value and gradient, whatever is in another one."""
  x = np.random.default_rng(1).standard_normal((1, LENGTH, 64), np.float32)
  if bad is not None:
    x[0, 10, 3] = bad
  ids = jnp.asarray([[4] * 7 + [2] * 8 + [3] * 9])

  def pulled(name):
    form = lambda x: attended(name, x, pieces=0, segment_ids=ids)  # noqa: E731
    out, pull = jax.vjp(form, jnp.asarray(x))
    return out, pull(jnp.ones_like(out).at[:, 7:15].set(0))[0]

  found, want = pulled("auto"), pulled("xla")
  assert calls and all(calls)
  clean = np.r_[0:7, 15:LENGTH]
  for one, other in zip(found, want, strict=True):
    oracles.assert_close(
      one[:, clean], other[:, clean], 10 * oracles.FLOAT32_BLOCK
    )
  # From its bad token on the document is NaN, and not before.
  nan = np.isnan(np.asarray(found[0])).all(axis=2)[0]
  spoilt = np.arange(LENGTH) >= (LENGTH if bad is None else 10)
  np.testing.assert_array_equal(nan[7:15], spoilt[7:15])


@pytest.mark.parametrize(
  ("slots", "branch"),
  [
    ([[0, 1, 2, 3], [0, 1, 2, 3]], 1),
    ([[0, 1, 2, 3], [0, 1, PADDING, PADDING]], 1),
    ([[0, 1, 2, 3], [PADDING] * 4], 1),
    ([[0, 1, 2, 3], [PADDING, 0, 1, 2]], 2),
    ([[4, 5, 6, 7], [0, 1, 2, 3]], 3),
    ([[PADDING, 3, 4, 5], [PADDING, PADDING, 1, 2]], 3),
    ([[PADDING] * 4, [1, 2, 3, 4]], 3),
  ],
)
@pytest.mark.parametrize("documents", [True, False])
def test_a_cache_takes_the_branch_of_what_it_holds(slots, branch, documents):
  """1: rows of one document; 2: of documents; 3: all that the cache holds."""
  slot = jnp.asarray(slots, jnp.int32)
  where = Positions(slot, jnp.zeros_like(slot), slot)
  q = jnp.zeros((2, 4, 1, 8))
  given = []

  def within(q, k, v, ids):
    if ids is None:
      return jnp.full_like(q, 1.0)
    given.append(ids)
    return jnp.full_like(q, 2.0)

  found = call_attention.by_what_is_known(
    *(within, lambda: jnp.full_like(q, 3.0), (q, q, q), where),
    documents=documents,
  )
  # What takes no documents is not even traced with them.
  assert len(given) == documents
  want = 3 if branch == 2 and not documents else branch
  np.testing.assert_array_equal(found, np.full(q.shape, want))


def test_documents_in_a_cache_begin_where_they_begin():
  """A first document that is not at slot 0 is no row of one document."""
  slot = jnp.arange(4, dtype=jnp.int32)[None]
  first = jnp.asarray([[0, 0, 2, 2]], jnp.int32)
  q = jnp.zeros((1, 4, 1, 8))
  found = call_attention.by_what_is_known(
    lambda q, k, v, ids: jnp.full_like(q, 1.0 if ids is None else 2.0),
    lambda: jnp.full_like(q, 3.0),
    *((q, q, q), Positions(slot, first, slot)),
  )
  assert (found == 2).all()


@pytest.mark.parametrize("left", [0, 5])
def test_a_cache_of_a_library_without_documents(calls, monkeypatch, left):
  monkeypatch.setattr(library_attention, "takes_documents", lambda *_: False)
  x = np.random.default_rng(0).standard_normal((2, LENGTH, 64), np.float32)
  found = attended("auto", x, left=left)
  assert calls and not any(calls)
  want = attended("xla", x, left=left)
  oracles.assert_close(found[:, left:], want[:, left:], oracles.FLOAT32_BLOCK)


def test_one_token_and_a_named_xla_take_no_library(calls):
  one = jnp.ones((1, 1, 64))
  attended("auto", one)
  assert not calls


# --- Refusals ----------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "dtype", "sentence"),
  [
    ("gpu", "float32", "must be bfloat16 or float16, got float32"),
    ("gpu", "bfloat16", "cuDNN"),
    ("tpu", "float16", "splash attention takes bfloat16 here"),
    ("tpu", "bfloat16", "head_dim 16 is not a multiple of 128"),
  ],
)
def test_a_named_attention_that_cannot_run_is_refused(name, dtype, sentence):
  config = models.CONFIGS["dense"]
  execution = neumann_jax.Execution(attention=name, dtype=dtype)
  with pytest.raises(ValueError, match=f"attention='{name}'.*{sentence}"):
    attention.GatedAttention(config, execution, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ("device", "library"),
  [
    (("TPU v5 lite", None, "tpu"), True),
    (("AMD Instinct MI300X", None, "rocm"), False),
    # jax asks this host for cuDNN, which has none.
    (("NVIDIA H200", None, "cuda"), False),
    (None, False),
  ],
)
def test_auto_takes_the_library_of_what_a_program_is_traced_for(
  device, library
):
  where = contextlib.nullcontext()
  if device is not None:
    one = jax.sharding.AbstractDevice(*device)
    where = jax.sharding.use_abstract_mesh(
      jax.sharding.AbstractMesh((), (), abstract_device=one)
    )
  q, k, _ = operands(8)
  with where:
    found = library_attention.choose("auto", q, k, None, MESH_AXES, in_blocks)
  assert (found is not None) == library


def test_an_unknown_attention_is_refused():
  with pytest.raises(ValueError, match="attention must be one of auto, tpu"):
    neumann_jax.Execution(attention="cudnn")
