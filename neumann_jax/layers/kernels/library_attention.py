"""Causal attention within a call, by what well-kept libraries have for it.

cuDNN's fused attention on GPUs, through `jax.nn.dot_product_attention`, and
splash attention of `jax.experimental.pallas` on TPUs. Neither ever holds all
scores. Both take the queries and keys of one call; what else a token sees is
`layers.causal_attention`'s.

Documents: cuDNN has no segments in its public form. It is given the causal
mask, which leaves half of the blocks out, and within these a mask of equal
documents: on one H200 (8192 tokens, 8 heads of 256 over 2) 1.5 ms forward and
5.1 with gradients, 0.6 and 2.5 without documents, and 2.9 and 8.2 in XLA. That
mask takes 3 T^2 bytes a row, so that longer rows of documents are XLA's.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P

from neumann_jax import lowering, target
from neumann_jax import sequence_axis as tokens
from neumann_jax.delta_rule import on_mesh
from neumann_jax.layers.kernels import library

# (q [B, T, H, D], k and v [B, T, Hkv, D], documents [B, T] int32 or None).
Attend = Callable[..., jax.Array]

# What has a shape and a type.
Like = jax.Array | jax.ShapeDtypeStruct
# Names of the mesh axes that split rows, and of the one that splits heads.
MeshAxes = tuple[tuple[str, ...], str | None]

# What no document is: the number of padding.
NONE = -1
_LANES = 128
# What `target.platform` says of those that have one.
_OF_PLATFORM = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu"}
# Tokens of a tile of splash attention, where so many divide the row.
_TILE = 512
# Tokens up to which cuDNN takes documents. Their mask and the bias that jax
# makes of it are 192 MiB a row there; a block of 1024 queries has scores of as
# many in XLA, for 6 heads, and grows with T alone.
_LONGEST_MASKED = 8192


def refusal(
  name: str,
  q: Like,
  k: Like,
  *,
  documents: bool = False,
  shards: int = 1,
) -> str | None:
  """Why a library's attention cannot run, as a clause, or None if it can.

  Args:
    name: "gpu" or "tpu".
    q: [B, T, H, D], only shape and type are read.
    k: [B, T, Hkv, D], likewise.
    documents: whether a row has several, of which padding is one.
    shards: of a row's tokens; q and k are of one of them.
  """
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"q, k and v must be bfloat16 or float16, got {q.dtype}"
  if name == "tpu":
    if q.dtype != jnp.bfloat16:
      return f"splash attention takes bfloat16 here, got {q.dtype}"
    if q.shape[-1] % _LANES:
      return f"head_dim {q.shape[-1]} is not a multiple of {_LANES}"
    return None
  length = shards * q.shape[1]
  if documents and length > _LONGEST_MASKED:
    return (
      f"cuDNN would take a mask of all pairs of {length} tokens for "
      f"documents or padding, which at most {_LONGEST_MASKED} are given"
    )
  heads = (q.shape[2], k.shape[2], q.shape[3])
  return _cudnn_refusal(*heads, jnp.dtype(q.dtype))


@functools.cache
def _cudnn_refusal(
  heads: int, shared: int, dim: int, dtype: jnp.dtype
) -> str | None:
  """What jax says against cuDNN on this host, in its own words."""
  shape = lambda heads: jax.ShapeDtypeStruct((1, 2, heads, dim), dtype)  # noqa: E731
  args = shape(heads), shape(shared), shape(shared)
  try:
    jax.eval_shape(lambda *args: jax.vjp(_by_cudnn, *args)[0], *args)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    return str(error).strip().rstrip(".").splitlines()[0]
  return None


def takes_documents(implementation: str, q: Like, k: Like) -> bool:
  """Whether a library that runs for rows of one document does for several."""
  name = _named(implementation)
  return refusal(name, q, k, documents=True) is None


def check(name: str, q: Like, k: Like) -> None:
  """Raises ValueError where a named library cannot run, with the reason."""
  reason = refusal(name, q, k)
  if reason is not None:
    raise _refused(name, reason)


def _refused(name: str, reason: str) -> ValueError:
  return ValueError(
    f"attention={name!r} cannot run: {reason}; use 'auto' or 'xla'"
  )


def _mesh_refusal(
  q: jax.Array, k: jax.Array, axis: str | None, sequence_axis: str | None
) -> str | None:
  """Where an axis of the mesh would leave every device all heads."""
  mesh, heads = on_mesh.mesh_of(q, k), q.shape[2]
  if axis in on_mesh.free_axes(mesh):
    size = mesh.shape[axis]
    if heads % size:
      return f"mesh axis {axis!r} of {size} does not divide {heads} heads"
    heads //= size
  if sequence_axis is not None:
    size = tokens.axis_size(sequence_axis)
    if heads % size:
      return (
        f"mesh axis {sequence_axis!r} of {size} splits the tokens and does not "
        f"divide {heads} heads"
      )
  return None


def choose(
  implementation: str,
  q: jax.Array,
  k: jax.Array,
  sequence_axis: str | None,
  mesh_axes: MeshAxes,
  elsewhere: Attend,
  *,
  documents: bool = False,
  around: Callable[[Attend], Attend] | None = None,
) -> Attend | None:
  """The attention of a library that a request stands for; None: the XLA form.

  Args:
    implementation: one of `execution.ATTENTION`.
    q: [B, T, H, D], only shape and type are read.
    k: [B, T, Hkv, D], likewise.
    sequence_axis: the mesh axis that splits the tokens, or None. Each device
      then takes all tokens of some heads, see `sequence_axis.over_heads`.
    mesh_axes: those that split rows, and the one that splits heads.
    elsewhere: the XLA form, for "auto" where a program of a host with a GPU or
      TPU is lowered for another platform.
    documents: whether a row has several, of which padding is one.
    around: makes of attention to whole rows what is called; None: itself.

  Raises:
    ValueError: for a named one that cannot run, with the reason.
  """
  auto = implementation == "auto"
  name = _named(implementation)
  if name not in _ATTEND:
    return None
  shards = 1 if sequence_axis is None else tokens.axis_size(sequence_axis)
  reason = refusal(name, q, k, documents=documents, shards=shards)
  reason = reason or _mesh_refusal(q, k, mesh_axes[1], sequence_axis)
  if reason is None:
    run = _run(name, elsewhere if auto else None)
    if around is not None:
      run = around(run)
    if sequence_axis is not None:
      run = tokens.over_heads(run, sequence_axis)
    return functools.partial(_on_mesh, run, mesh_axes)
  if not auto:
    raise _refused(name, reason)
  _log_fallback(name, reason)
  return None


@functools.cache
def _log_fallback(name: str, reason: str) -> None:
  logging.info("attention 'auto' takes XLA on a %s: %s", name, reason)


def _named(implementation: str) -> str:
  """The library that a request stands for; "xla" where there is none."""
  if implementation != "auto":
    return implementation
  return _OF_PLATFORM.get(target.platform() or "", "xla")


def _run(name: str, elsewhere: Attend | None) -> Attend:
  attend, platform = _ATTEND[name], lowering.PLATFORMS[name]
  if elsewhere is None:
    return lambda *args: attend(
      *lowering.bound_to(name, args, option="attention")
    )
  return lambda *args: lax.platform_dependent(
    *args, default=elsewhere, **{platform: attend}
  )


def _on_mesh(attend: Attend, axes: MeshAxes, q, k, v, documents):
  """Rows and heads where they are; neither meets another."""
  mesh = on_mesh.mesh_of(q, k, v)
  free = on_mesh.free_axes(mesh)
  if mesh.size == 1 or not free:
    return attend(q, k, v, documents)
  batch, head = axes
  rows = on_mesh.row_axes(mesh, batch, q.shape[0])
  heads = on_mesh.head_axis(mesh, head, q.shape[2])
  if heads is not None:
    # Key heads that are fewer than devices stand with each of their queries.
    k, v = (tokens.divisible_heads(x, mesh.shape[heads]) for x in (k, v))
  token = P(rows, None, heads)
  return on_mesh.spread(
    attend,
    mesh=mesh,
    in_specs=(token, token, token, P(rows)),
    out_specs=token,
  )(q, k, v, documents)


def _by_cudnn(q, k, v, documents=None):
  mask, length = None, q.shape[1]
  if documents is not None:
    # The backward pass takes a mask of an even number of tokens alone.
    q, k, v, documents = _padded(length % 2, q, k, v, documents)
    mask = _same(documents)
  return library.keeping_no_empty(_fused)(q, k, v, mask)[:, :length]


def _fused(q, k, v, mask):
  # Names of types mix, as in `layers.causal_attention`.
  with jax.numpy_dtype_promotion("standard"):
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=True, implementation="cudnn"
    )


def _padded(pad: int, q, k, v, documents):
  """With so many tokens of no document behind those of a row."""
  wide = [(0, 0), (0, pad), (0, 0), (0, 0)]
  q, k, v = (jnp.pad(x, wide) for x in (q, k, v))
  return q, k, v, jnp.pad(documents, wide[:2], constant_values=NONE)


def _same(documents: jax.Array) -> jax.Array:
  """[B, 1, T, T], whether a query and a key are of one document."""
  return (documents[:, :, None] == documents[:, None])[:, None]


def _by_splash(q, k, v, documents=None):
  length, dim = q.shape[1], q.shape[-1]
  pad = -length % _LANES
  # The kernel does not scale. In float32, and rounded once.
  q = (q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)
  if pad:
    ids = jnp.zeros(q.shape[:2], jnp.int32) if documents is None else documents
    q, k, v, documents = _padded(pad, q, k, v, ids)
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))  # [B, heads, T, D]
  out = library.differentiable(_splash)(q, k, v, documents)
  return jnp.swapaxes(out, 1, 2)[:, :length]


def _splash(q, k, v, documents):
  """Of [B, heads, T, D], T a multiple of the lanes."""
  kernel = _splash_kernel(*q.shape[1:3])
  if documents is None:
    return jax.vmap(kernel)(q, k, v)
  return jax.vmap(kernel)(q, k, v, splash.SegmentIds(documents, documents))


def _splash_kernel(heads: int, length: int):
  tile = next(t for t in (_TILE, 256, _LANES) if length % t == 0)
  sizes = splash.BlockSizes(
    block_q=tile,
    block_kv=tile,
    block_kv_compute=tile,
    block_q_dkv=tile,
    block_kv_dkv=tile,
    block_kv_dkv_compute=tile,
    block_q_dq=tile,
    block_kv_dq=tile,
  )
  mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
  return splash.make_splash_mha(
    mask, block_sizes=sizes, head_shards=1, q_seq_shards=1
  )


_ATTEND: dict[str, Attend] = {"gpu": _by_cudnn, "tpu": _by_splash}
