"""Which layers have a kernel, and how its programs share the work."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from neumann_jax.layers.kernels import stages, token_gpu
from neumann_jax.layers.kernels.layer_weights import (
  Attention,
  Mixed,
  Operands,
  Static,
)
from neumann_jax.layers.kernels.stages import ROWS, Cut

# Columns of a state that a program holds: 32 registers a thread. On one H200 a
# step took as long with 16, and 1.17 times as long with 64.
PART = 32
# Of the largest stage that was measured. Layers of hidden sizes 2560 and 4096
# were read at 46 and 55 % of an H200's bandwidth in kernels of this kind, by
# more tiles a program, and products of eight rows in XLA at 48 and 61 %.
_MOST = 1100
# Slots of a cache that a program of attention reads at once: 8 KB of keys of
# 256 entries, and as much of values. With the next ones under way they are as
# many registers as a tile of weights; of programs with twice as many, three
# would run at once on a multiprocessor, and not five.
SLOTS = 16
# Programs that share the slots of a query, at most; where there are more blocks
# of slots, each takes several. Who reads a head holds a row of each at once.
_SPLITS = 32
# Heads of ROWS and of these many entries are the only widths that were run.
_WIDEST = 256
# The largest cache that was measured to gain. Of 33024 slots, 32768 in use, a
# token of 0.8B took 1.09 times as long as by attention in XLA on one H200.
_MOST_SLOTS = 4352


def refusal(static: Static, given: Operands) -> str | None:
  """Why the kernel cannot run, as a clause, or None if it can.

  Args:
    static: what is static.
    given: of the step, x [..., K]; only shapes and types are read.
  """
  x, weights, mixer, kept = given
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
  plan = planned(given)
  most = max(plan.units)
  if most > _MOST:
    return f"{most} programs of a stage are more than {_MOST}"
  if isinstance(mixer, Attention):
    return _attention_refusal(x, kept[0])
  if isinstance(mixer, Mixed):
    return None
  state = kept[1]
  if state.shape[-1] != ROWS:
    return f"values must have {ROWS} entries, got {state.shape[-1]}"
  # Programs of gate and up move the columns of queries and keys on.
  programs = plan.inner.units
  if programs < 2 * static.key_heads:
    return f"{programs} programs are too few for {static.key_heads} key heads"
  return token_gpu.refusal(static.key_heads, x.dtype, mixer.conv, state)


def _attention_refusal(x: jax.Array, keys: jax.Array) -> str | None:
  dim = keys.shape[-1]
  if keys.dtype != x.dtype:
    return f"cached keys must be {x.dtype}, got {keys.dtype}"
  if dim not in (ROWS, _WIDEST):
    return f"head_dim must be {ROWS} or {_WIDEST}, got {dim}"
  if keys.shape[1] > _MOST_SLOTS:
    return (
      f"a cache must have at most {_MOST_SLOTS} slots for one kernel, got "
      f"{keys.shape[1]}"
    )
  return None


class Plan(NamedTuple):
  """How the stages are cut, and the counters of what they wait for.

  Attributes:
    heads: Hv, or H of attention.
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
    return self.told + self.heads

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


def planned(given: Operands) -> Plan:
  """By the sizes of the weights and of what the mixer keeps."""
  _, weights, mixer, kept = given
  size, width = weights.gate.shape
  inner, down = stages.cut(size, (width, width)), stages.cut(width, (size,))
  out = stages.cut(mixer.out.shape[0], (size,))
  if isinstance(mixer, Mixed):
    return Plan(0, 0, None, out, inner, down)
  projections = stages.cut(size, [x.shape[1] for x in mixer.projections])
  if isinstance(mixer, Attention):
    heads = mixer.out.shape[0] // kept[0].shape[3]
    parts = min(_SPLITS, pl.cdiv(kept[0].shape[1], SLOTS))
  else:
    heads, parts = kept[1].shape[1], kept[1].shape[3] // PART
  return Plan(heads, parts, projections, out, inner, down)
