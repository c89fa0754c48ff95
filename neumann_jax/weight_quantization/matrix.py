"""Post-training quantisation of a weight matrix, and the product with it.

The notation WxAy: x-bit weights, y-bit activations. Weights have symmetric
codes with one float32 scale an output channel, or one for each group of input
rows of a channel; activations are quantised as they come, symmetrically, with
one scale per token. Codes are those of `chunk_inverse.integer`. Products of
integer operands are taken on int8 codes (two signed 8-bit limbs for INT16
activations) with int32 sums and scaled once a group.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from neumann_jax.checks import plain_numbers
from neumann_jax.chunk_inverse import integer

# Product of [..., K] and [..., K, N], with this dtype of sums.
Dot = Callable[[jax.Array, jax.Array, jnp.dtype], jax.Array]


@dataclasses.dataclass(frozen=True)
class WeightQuantSpec:
  """How the linear maps of a model are quantised.

  The literature means two things by "A16". In arXiv 2606.06034 (W4A16 on an
  NPU) activations are INT16 codes, and so are they here with
  `activation_bits=16`; work on GPUs means activations left in a 16-bit float,
  which here is `activation_bits=None` with the model's own dtype. The paper's
  granularity of scales is not known; one scale per channel or group of 128
  rows are the two usual choices.

  Attributes:
    weight_bits: 4 or 8. Codes of 4 bits are held in int8 as well: what they
      do to accuracy is what is studied, not the memory they would save.
    activation_bits: 8 or 16; None leaves activations in the model's dtype.
    group: input rows that share a scale, >= 1; None: all rows of a channel.
      The last group of a channel is shorter where the rows do not divide.

  Raises:
    ValueError: for a value out of range.
  """

  weight_bits: int = 8
  activation_bits: int | None = None
  group: int | None = None

  def __post_init__(self) -> None:
    plain_numbers(self)
    if self.weight_bits not in (4, 8):
      raise ValueError(f"weight_bits must be 4 or 8, got {self.weight_bits!r}")
    if self.activation_bits not in (None, 8, 16):
      raise ValueError(
        f"activation_bits must be None, 8 or 16, got {self.activation_bits!r}"
      )
    if self.group is not None and (
      not isinstance(self.group, int) or self.group < 1
    ):
      raise ValueError(
        f"group must be an integer of at least 1 or None, got {self.group!r}"
      )


# "W4A16": one scale per channel; "W4A16-g128": per group; "W4": weights only.
PRESETS = {
  f"W{weight}{f'A{activation}' if activation else ''}{suffix}": WeightQuantSpec(
    weight, activation, group
  )
  for weight in (4, 8)
  for activation in (None, 8, 16)
  for suffix, group in (("", None), ("-g128", 128))
}


def preset(name: str) -> WeightQuantSpec:
  """The spec that a name of `PRESETS` stands for.

  Raises:
    ValueError: for another name.
  """
  if name not in PRESETS:
    raise ValueError(
      f"a weight quantisation is one of {', '.join(PRESETS)}; got {name!r}"
    )
  return PRESETS[name]


class Codes(nnx.Variable):
  """Integer codes; not a parameter, because nothing differentiates them."""


class Scale(nnx.Variable):
  """Scales of codes; not a parameter."""


class QuantizedKernel(nnx.Module):
  """A matrix [..., K, N] as integer codes and scales.

  Args:
    kernel: [..., K, N] floating point; leading axes are of a stack.
    spec: how it is quantised.

  Attributes:
    codes: [..., K, N] int8 in [-q, q], q = 7 or 127.
    scale: [..., G, N] float32, for G groups of rows; an entry is off by at
      most half of its scale.
  """

  def __init__(self, kernel: jax.Array, spec: WeightQuantSpec) -> None:
    self.spec = spec
    codes, scale = _quantized(kernel, spec)
    self.codes, self.scale = Codes(codes), Scale(scale)

  def dequantized(self) -> jax.Array:
    """The matrix that the codes stand for, [..., K, N] float32."""
    return _dequantized(self.codes[...], self.scale[...], self.spec.group)

  def multiply(
    self,
    x: jax.Array,
    dtype: jnp.dtype,
    dot: Dot,
    pick: Callable[[jax.Array], jax.Array] = lambda scale: scale,
  ) -> jax.Array:
    """x [..., K] times the matrix, in `dtype`.

    Args:
      x: floating point.
      dtype: of the result; of the sums too where activations stay floating.
      dot: the product.
      pick: from the scales of a group, the one of every row of the result.
    """
    bits = self.spec.activation_bits
    # Dequantised for the product: the weights' memory is saved, not its time.
    if bits is None:
      return dot(x, self.dequantized().astype(x.dtype), dtype)
    x = x.astype(jnp.float32)
    # A scale a token, so that no token is rounded more coarsely for its
    # neighbours, and what is generated does not depend on the batch.
    n, x_scale = integer.dynamic_codes(x, axis=-1, bits=bits)  # [..., K]
    group, scale = self.spec.group, self.scale[...]
    # One group: sums of K codes in int32, scaled once. 127 * 127 * K overflows
    # from K = 133,000 on, wider than any published model.
    if scale.shape[-2] == 1:
      product = _code_product(n, self.codes[...], bits, dot)
      return (product * pick(scale[..., 0, :]) * x_scale).astype(dtype)
    parts = (
      jnp.moveaxis(_split_rows(n[..., None], group)[..., 0], -2, 0),
      jnp.moveaxis(_split_rows(self.codes[...], group), -3, 0),
      jnp.moveaxis(scale, -2, 0),
    )  # each leads with the groups

    # Group by group in a scan: all at once would hold G products of [..., N].
    def add(total, part):
      n, codes, scale = part
      return total + _code_product(n, codes, bits, dot) * pick(scale), None

    zero = jnp.zeros((*x.shape[:-1], scale.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add, zero, parts)
    return (total * x_scale).astype(dtype)


# One program a shape: a model has a dozen shapes and hundreds of matrices, and
# a dozen operations each would be compiled and dispatched one by one.
@functools.partial(jax.jit, static_argnums=1)
def _quantized(
  kernel: jax.Array, spec: WeightQuantSpec
) -> tuple[jax.Array, jax.Array]:
  """Codes [..., K, N] int8 and scales [..., G, N] of a matrix [..., K, N]."""
  groups = _split_rows(kernel.astype(jnp.float32), spec.group)  # [...,G,K/G,N]
  codes, scale = integer.dynamic_codes(groups, axis=-2, bits=spec.weight_bits)
  codes = _join_rows(codes.astype(jnp.int8), kernel.shape[-2])
  return codes, scale[..., 0, :]


def _code_product(
  n: jax.Array, codes: jax.Array, bits: int, dot: Dot
) -> jax.Array:
  """Product of activation codes and int8 weight codes, in float32."""

  def exact(left: jax.Array, right: jax.Array) -> jax.Array:
    return dot(left.astype(jnp.int8), right, jnp.int32)

  return integer.limb_product(integer.limbs(n, bits=bits), (codes,), exact)


@functools.partial(jax.jit, static_argnums=2)
def _dequantized(
  codes: jax.Array, scale: jax.Array, group: int | None
) -> jax.Array:
  groups = _split_rows(codes.astype(jnp.float32), group)
  return _join_rows(groups * scale[..., None, :], codes.shape[-2])


def _split_rows(x: jax.Array, group: int | None) -> jax.Array:
  """[..., K, N] -> [..., G, K / G, N], K padded with zeros to whole groups."""
  rows = x.shape[-2]
  group = rows if group is None else min(group, rows)
  # Zeros have code 0: they change neither a scale nor a sum.
  pad = [(0, 0)] * (x.ndim - 2) + [(0, -rows % group), (0, 0)]
  x = jnp.pad(x, pad)
  return x.reshape(*x.shape[:-2], -1, group, x.shape[-1])


def _join_rows(x: jax.Array, rows: int) -> jax.Array:
  """Inverse of `_split_rows`: [..., G, K / G, N] -> [..., rows, N]."""
  x = x.reshape(*x.shape[:-3], -1, x.shape[-1])
  return x[..., :rows, :]
