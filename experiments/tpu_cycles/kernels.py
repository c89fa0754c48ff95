"""The TPU kernels that `tpu_cycles` compares, and how wrong they are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import key_families
from experiments.inverse_accuracy import errors as inverse_study
from experiments.inverse_accuracy.errors import InverseSettings
from experiments.peers import tpu as tpu_peers
from neumann_jax import InverseSpec
from neumann_jax.chunk_inverse.inverse_spec import resolve
from neumann_jax.chunk_inverse.kernels import tpu

CHUNK_SIZE = 64
# Matrices of every compiled program: more than any vector memory holds.
COUNT = 8192
# Matrices a call of the error measurement. Groups of 16 are the most that a
# kernel mixes in its registers, so blocks do not change what it computes.
MEASURED = 16
BETAS = ((0.6, 1.0), (0.0, 2.0))

TOKAMAX = "tokamax float32"
SUBSTITUTIONS = (
  "substitution, rows in lanes",
  "substitution, batch in lanes",
)
SPECS = {
  name: resolve(InverseSpec.parse(name), CHUNK_SIZE)
  for name in (
    "ladder bfloat16",
    "ladder bfloat16 refine",
    "ladder float32",
    "ladder int8-envelope",
    "newton bfloat16",
    "banded N3 S8 bfloat16",
    "banded N3 S8 float32",
    "banded-masked N3 S16 bfloat16",
  )
}
PEERS: dict[str, Callable[..., jax.Array]] = {
  SUBSTITUTIONS[0]: tpu_peers.rows_in_lanes,
  SUBSTITUTIONS[1]: tpu_peers.batch_in_lanes,
  TOKAMAX: tpu_peers.tokamax,
}
NAMES = (*SPECS, *PEERS)


class KernelProgram(NamedTuple):
  """A kernel at one block, ready to be lowered.

  Attributes:
    call: takes [N, C, C] and what `bound` of `tpu.invert` takes.
    label: stands in the names of its dump's files.
    trips: of the one loop inside the kernel; 1 where there is none.
  """

  call: Callable[[jax.Array, Any], jax.Array]
  label: str
  trips: int


def program(name: str, block: int) -> KernelProgram:
  """The kernel of a name.

  Args:
    name: one of NAMES.
    block: matrices a grid step.

  Raises:
    ImportError: it is tokamax's, and that is not installed.
  """
  if name in PEERS:
    if name == TOKAMAX:
      tpu_peers.tokamax_function()
    peer = PEERS[name]
    loops = peer is tpu_peers.rows_in_lanes
    return KernelProgram(
      lambda a, bound: peer(a, block),
      "peer_",
      block // tpu_peers.GROUP if loops else 1,
    )
  call = functools.partial(_ours, spec=SPECS[name], block=block)
  return KernelProgram(call, "neumann_", 1)


def errors(
  name: str, settings: InverseSettings
) -> dict[tuple[float, float], float]:
  """The worst error of a kernel's body, run on the CPU, over key families.

  Args:
    name: one of NAMES.
    settings: seed and draws.

  Returns:
    For either range of `BETAS` the worst relative Frobenius error of the
    strictly lower part, against float64.

  Raises:
    ImportError: see `program`.
  """
  run = jax.jit(functools.partial(_measured, name))
  worst = {}
  for beta in BETAS:
    groups = inverse_study.family_groups(
      settings, chunk_size=CHUNK_SIZE, betas=[beta]
    )
    a = np.concatenate([group.a for group in groups])
    bound = np.concatenate([group.envelope for group in groups])
    bound = bound.max((-2, -1), keepdims=True)
    spare = -len(a) % MEASURED
    fill = ((0, spare), (0, 0), (0, 0))
    parts = zip(
      np.split(np.pad(a, fill), (len(a) + spare) // MEASURED),
      np.split(np.pad(bound, fill, mode="edge"), (len(a) + spare) // MEASURED),
    )
    with jax.default_device(jax.devices("cpu")[0]):
      found = np.concatenate([np.asarray(run(x, b)) for x, b in parts])
    relative = key_families.relative_error(
      found[: len(a)], key_families.exact_inverse(a)
    )
    worst[beta] = float(relative.max())
  return worst


def reason_without(names: Sequence[str]) -> str | None:
  """Why tokamax cannot be among the kernels, or None if it can or is not."""
  if TOKAMAX in names:
    try:
      tpu_peers.tokamax_function()
    except ImportError as error:
      return f"{TOKAMAX} is left out: {error}"
  return None


def _ours(
  a: jax.Array, bound: jax.Array | None, *, spec: InverseSpec, block: int
) -> jax.Array:
  return tpu.invert(spec, a, bound, block=block)


def _measured(name: str, a: jax.Array, bound: jax.Array) -> jax.Array:
  if name in PEERS:
    return PEERS[name](a, MEASURED, interpret=True)
  return tpu.invert(SPECS[name], a, bound, interpret=True)
