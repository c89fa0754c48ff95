"""What the kernel of a layer is given."""

from typing import Any, NamedTuple


class FeedForward(NamedTuple):
  """Weights of the second half of a layer.

  Attributes:
    norm: [K], about 0.
    gate: [K, M].
    up: [K, M].
    down: [M, K].
  """

  norm: Any
  gate: Any
  up: Any
  down: Any


class Mixer(NamedTuple):
  """Weights of the first half of a layer with a Gated DeltaNet block.

  Attributes:
    norm: [K], about 0.
    qkv: [K, 2 Hk Dk + Hv Dv].
    z: [K, Hv Dv].
    b: [K, Hv].
    a: [K, Hv].
    conv: [W, 2 Hk Dk + Hv Dv].
    a_log: [Hv] float32.
    dt_bias: [Hv] float32.
    out_norm: [Dv].
    out: [Hv Dv, K].
  """

  norm: Any
  qkv: Any
  z: Any
  b: Any
  a: Any
  conv: Any
  a_log: Any
  dt_bias: Any
  out_norm: Any
  out: Any

  @property
  def projections(self) -> tuple[Any, Any, Any, Any]:
    """Those of the normed row."""
    return self.qkv, self.z, self.b, self.a

  @property
  def between(self) -> tuple[Any, Any, Any, Any]:
    """What lies between the projections, as `token_step.Weights`."""
    return self.conv, self.a_log, self.dt_bias, self.out_norm


class Attention(NamedTuple):
  """Weights of the first half of a layer with full attention, and its token.

  Attributes:
    norm: [K], about 0.
    q: [K, 2 H D], a query and its gate for each head.
    k: [K, Hkv D].
    v: [K, Hkv D].
    q_norm: [D], about 0.
    k_norm: [D], about 0.
    out: [H D, K].
    cos: [r / 2] float32, of the rotation.
    sin: [r / 2] float32.
    places: [2] int32, the slot of the token and the first that it sees.
  """

  norm: Any
  q: Any
  k: Any
  v: Any
  q_norm: Any
  k_norm: Any
  out: Any
  cos: Any
  sin: Any
  places: Any

  @property
  def projections(self) -> tuple[Any, Any, Any]:
    """Those of the normed row."""
    return self.q, self.k, self.v


class Mixed(NamedTuple):
  """What another mixer leaves, in a layer of one.

  Attributes:
    row: [R], before the output's projection.
    out: [R, K].
  """

  row: Any
  out: Any


# The first half of a layer.
First = Mixer | Attention | Mixed


class Operands(NamedTuple):
  """What the kernel of a layer takes of a step.

  Attributes:
    x: [K], or of one such row.
    weights: of the second half.
    first: of the first half, or what another left of it.
    kept: what the mixer keeps: of the rule the history
      [1, 2 Hk Dk + Hv Dv, W] and the state [1, Hv, Dk, Dv] float32; of
      attention keys and values [1, S, Hkv, D]; else nothing.
  """

  x: Any
  weights: FeedForward
  first: First
  kept: tuple[Any, ...] = ()


class Static(NamedTuple):
  """What is static.

  Attributes:
    key_heads: Hk; 0 in a layer without the rule.
    beta_max: of the write strength.
    eps: of all norms.
  """

  key_heads: int
  beta_max: float
  eps: float
