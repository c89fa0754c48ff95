"""What the kernel of a layer is given, and how its programs share the work."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from neumann_jax.layers.kernels import stages, token_gpu
from neumann_jax.layers.kernels.stages import ROWS, Cut

# Columns of a state that a program holds: 32 registers a thread. On one H200 a
# step took as long with 16, and 1.17 times as long with 64.
PART = 32
# Of the largest stage that was measured. Layers of hidden sizes 2560 and 4096
# were read at 46 and 55 % of an H200's bandwidth in kernels of this kind, by
# more tiles a program, and products of eight rows in XLA at 48 and 61 %.
_MOST = 1100


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


class Mixed(NamedTuple):
  """What another mixer leaves, in a layer of one.

  Attributes:
    row: [R], before the output's projection.
    out: [R, K].
  """

  row: Any
  out: Any


class Static(NamedTuple):
  """What is static.

  Attributes:
    key_heads: Hk; 0 in a layer with another mixer.
    beta_max: of the write strength.
    eps: of all norms.
  """

  key_heads: int
  beta_max: float
  eps: float


def refusal(
  static: Static,
  x: jax.Array,
  weights: FeedForward,
  mixer: Mixer | Mixed,
  history: jax.Array | None,
  state: jax.Array | None,
) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    static: what is static.
    x: [..., K], only shapes and types are read.
    weights: of the second half.
    mixer: of the first half, or what another left of it.
    history: [B, 2 Hk Dk + Hv Dv, W], or None.
    state: [B, Hv, Dk, Dv] float32, or None.
  """
  if x.size != x.shape[-1]:
    return f"one kernel takes one row, got {x.size // x.shape[-1]}"
  if x.dtype not in (jnp.bfloat16, jnp.float16):
    return f"one kernel takes bfloat16 and float16, got {x.dtype}"
  matrices = [weights.gate, weights.up, weights.down]
  if isinstance(mixer, Mixed):
    matrices += [mixer.out]
    if mixer.row.dtype != x.dtype:
      return f"what a mixer left must be {x.dtype}, got {mixer.row.dtype}"
  else:
    matrices += [*mixer.projections, mixer.out]
  if any(matrix.dtype != x.dtype for matrix in matrices):
    return f"weights must be {x.dtype} as the activations"
  for size in {matrix.shape[0] for matrix in matrices}:
    if size % ROWS:
      return f"{size} rows are not a multiple of {ROWS}"
  plan = planned(weights, mixer, state)
  most = max(plan.units)
  if most > _MOST:
    return f"{most} programs of a product are more than {_MOST}"
  if not isinstance(mixer, Mixer) or state is None:
    return None
  if state.shape[-1] != ROWS:
    return f"values must have {ROWS} entries, got {state.shape[-1]}"
  # Programs of gate and up move the columns of queries and keys on.
  programs = plan.inner.units
  if programs < 2 * static.key_heads:
    return f"{programs} programs are too few for {static.key_heads} key heads"
  return token_gpu.refusal(static.key_heads, x.dtype, mixer.conv, state)


class Plan(NamedTuple):
  """How the stages are cut, and the counters of what they wait for.

  Attributes:
    heads: Hv.
    parts: programs of a head.
    projections: of the mixer's input, or None.
    out: of the mixer's output.
    inner: gate and up.
    down: the last.
  """

  heads: int
  parts: int
  projections: Cut | None
  out: Cut
  inner: Cut
  down: Cut

  @property
  def projected(self) -> int:
    """Counts programs of the projections."""
    return 1

  @property
  def mixed(self) -> int:
    """Counts blocks of the sum after the mixer."""
    return 2

  @property
  def gated(self) -> int:
    """Counts, for each tile that down reads, what it is of; the first."""
    return 3

  @property
  def ended(self) -> int:
    """Counts, for each block of down, its shares; the first of them."""
    return self.gated + self.down.shares

  @property
  def told(self) -> int:
    """Counts, for each head, the programs that it is of; the first."""
    return self.ended + self.down.starts[-1]

  @property
  def summed(self) -> int:
    """Counts, for each block of the output, its shares; the first."""
    return self.told + (self.out.shares if self.projections else 0)

  @property
  def counters(self) -> int:
    """How many."""
    return self.summed + self.out.starts[-1] - 1

  @property
  def units(self) -> list[int]:
    """Programs of each stage."""
    first = self.projections.units if self.projections else 0
    rest = (cut.units for cut in (self.out, self.inner, self.down))
    return [first, self.heads * self.parts, *rest]


def planned(
  weights: FeedForward, mixer: Mixer | Mixed, state: jax.Array | None
) -> Plan:
  """By the sizes of the weights and of the state."""
  size, width = weights.gate.shape
  inner, down = stages.cut(size, (width, width)), stages.cut(width, (size,))
  if not isinstance(mixer, Mixer) or state is None:
    out = stages.cut(mixer.out.shape[0], (size,))
    return Plan(0, 0, None, out, inner, down)
  heads, dv = state.shape[1], state.shape[3]
  projections = stages.cut(size, [x.shape[1] for x in mixer.projections])
  out = stages.cut(heads * dv, (size,))
  return Plan(heads, dv // PART, projections, out, inner, down)
