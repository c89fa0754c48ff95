"""Whole rules of other packages, as programs for a TPU that is not there.

All ask what they run on while they are traced: `as_on` answers for a kind of
TPU that only libtpu knows.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

TOKAMAX = "tokamax convolution, gates and rule, forward"
DELTANET = "deltanet-tpu, forward"
DELTANET_GRADIENTS = "deltanet-tpu, with gradients"
TOKAMAX_MODULE = "tokamax._src.ops.causal_conv1d_gated_delta_rule.wrapper"
# Tokens a tile: what tokamax's own rule picks at 8192 tokens of 16/32 heads.
TILE = 128
TAPS = 4  # of the convolution


class PeerRule(NamedTuple):
  """A rule, ready to be traced under `as_on`.

  Attributes:
    call: takes what `shapes` describes.
    shapes: of its arguments.
    trips: of the loop over tiles in kernels that have no grid, by what their
      names begin with.
  """

  call: Callable[..., Any]
  shapes: tuple[jax.ShapeDtypeStruct, ...]
  trips: Mapping[str, int]


def program(
  name: str, tokens: int, key_heads: int, value_heads: int, width: int
) -> PeerRule:
  """The rule of a name, of one row.

  Args:
    name: among NAMES.
    tokens: of the row.
    key_heads: Hk.
    value_heads: Hv.
    width: of keys and values.

  Raises:
    ImportError: its package is not installed here.
  """
  return NAMES[name](tokens, key_heads, value_heads, width)


@contextlib.contextmanager
def as_on(device: Any) -> Iterator[None]:
  """While it is entered, packages find the kind of TPU of a topology.

  Args:
    device: of `jax.experimental.topologies`.
  """
  kind = jax.sharding.AbstractDevice(device.device_kind, 1, "tpu")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=kind)
  # deltanet-tpu interprets its kernels wherever the host has no TPU.
  backend = mock.patch.object(jax, "default_backend", lambda: "tpu")
  with jax.sharding.use_abstract_mesh(mesh), backend:
    yield


def _tokamax(tokens: int, hk: int, hv: int, width: int) -> PeerRule:
  """One sequence of a prefill, its state in the second of two slots."""
  fused = importlib.import_module(TOKAMAX_MODULE).fused_conv1d_gdn
  columns = (2 * hk + hv) * width

  def call(qkv, b, a, history, states, taps, a_log, dt_bias):
    numbers = [0, tokens], [1], [0, 1, 1], [tokens]
    return fused(
      *(qkv, b, a, history, states, taps, None, a_log, dt_bias),
      *(jnp.asarray(x, jnp.int32) for x in numbers),
      n_kq=hk,
      n_v=hv,
      d_k=width,
      d_v=width,
      kernel_size=TAPS,
      mixed_tile_size=TILE,
    )

  shapes = (
    *((tokens, n) for n in (columns, hv, hv)),
    (2, TAPS - 1, columns),
    (2, hv, width, width),
    (columns, 1, TAPS),
    (hv,),
    (hv,),
  )
  types = [jnp.bfloat16] * 6 + [jnp.float32, jnp.bfloat16]
  arrays = map(jax.ShapeDtypeStruct, shapes, types)
  # The other kernel is for sequences of one token, of which there are none.
  trips = {"fused_conv1d_gdn_per_seq": tokens // TILE, "fused_conv1d_gdn": 0}
  return PeerRule(call, tuple(arrays), trips)


def _deltanet(
  tokens: int, hk: int, hv: int, width: int, *, gradients: bool = False
) -> PeerRule:
  rule = importlib.import_module("deltanet_tpu").chunk_gdn

  def both(*arrays):
    out, pull = jax.vjp(rule, *arrays[:5])
    return out, pull(arrays[5])

  keys, values = (
    jax.ShapeDtypeStruct((1, tokens, n, width), jnp.bfloat16) for n in (hk, hv)
  )
  gate = jax.ShapeDtypeStruct((1, tokens, hv), jnp.float32)
  shapes = (keys, keys, values, gate, gate)
  if gradients:
    return PeerRule(both, (*shapes, values), {})
  return PeerRule(rule, shapes, {})


def _deltanet_gradients(*sizes: int) -> PeerRule:
  return _deltanet(*sizes, gradients=True)


NAMES: dict[str, Callable[..., PeerRule]] = {
  TOKAMAX: _tokamax,
  DELTANET: _deltanet,
  DELTANET_GRADIENTS: _deltanet_gradients,
}
