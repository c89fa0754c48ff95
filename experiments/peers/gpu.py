"""Other people's kernels on the same buffers: torch's copy, fla's rule.

Nothing here is needed: where torch or fla is not installed, or there is no
CUDA device, `missing` says so. Arrays are shared by DLPack, never copied.
"""

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

FLA_CHUNKS = (16, 32, 64)
PACKAGES = ("torch", "triton", "fla-core", "flash-linear-attention")


def share_memory() -> None:
  """Keeps jax from taking most of the GPU's memory where torch is installed.

  Call it before jax knows its devices; a variable already set is left alone.
  """
  if _installed("torch"):
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def missing(package: str) -> str | None:
  """Why a package, which needs torch, cannot be timed here; None if it can."""
  if jax.default_backend() != "gpu":
    return f"{package} is timed on CUDA devices only"
  for name in dict.fromkeys(("torch", package)):
    if not _installed(name):
      return f"{name} is not installed"
  if not _torch().cuda.is_available():
    return "torch sees no CUDA device"
  return None


def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


def missing_fla(chunk_size: int) -> str | None:
  """Why fla cannot be timed at a chunk size, or None."""
  if chunk_size not in FLA_CHUNKS:
    return f"fla has chunks of 16, 32 and 64, not {chunk_size}"
  return missing("fla")


def versions() -> dict[str, str | None]:
  """Versions of the packages, None where not installed."""
  found: dict[str, str | None] = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def shared(x: jax.Array) -> Any:
  """The same buffer as a torch tensor."""
  return _torch().from_dlpack(jax.block_until_ready(x))


def returned(x: Any) -> jax.Array:
  """A torch tensor's buffer as a jax array, once it has been written."""
  wait()
  return jnp.from_dlpack(x.contiguous())


def wait(_: Any = None) -> None:
  """Returns when torch's work is done."""
  _torch().cuda.synchronize()


def measured(
  measure: Callable[..., Any],  # `timing.measure` with its options
  run: Callable[..., Any],  # on torch tensors
  sets: Sequence[Sequence[jax.Array]],  # input sets
) -> tuple[Any, Any]:
  """The timing of a torch function on our buffers, and its first output."""
  inputs = [tuple(map(shared, x)) for x in sets]
  taken = measure(run, inputs, wait=wait)
  return taken, run(*inputs[0])


def peak_bytes(run: Callable[..., Any], *args: Any) -> int:
  """The most memory torch held during a call, beyond what it held before."""
  cuda = _torch().cuda
  cuda.synchronize()
  before = cuda.memory_allocated()
  cuda.reset_peak_memory_stats()
  run(*args)
  cuda.synchronize()
  return cuda.max_memory_allocated() - before


def free_memory() -> None:
  """Returns to the GPU what torch keeps for later."""
  _torch().cuda.empty_cache()


def copy(x: Any) -> Any:
  """torch's own copy of a tensor."""
  return x.clone()


def solve_tril() -> Callable[[Any], Any]:
  """fla's inverse of I + A, [N, C, C] float32 tensors in and out.

  Its time includes fla's filling of the output with zeros.
  """
  solve = importlib.import_module("fla.ops.utils").solve_tril

  def run(a: Any) -> Any:
    n, c, _ = a.shape
    return solve(A=a.view(1, n * c, 1, c)).view(n, c, c)

  return run


def wy_stage(chunk_size: int) -> Callable[..., tuple[Any, Any]]:
  """fla's stage (k, v, log_decay, beta) -> (u, w), all torch tensors."""
  rule = importlib.import_module("fla.ops.gated_delta_rule.chunk_fwd")
  utils = importlib.import_module("fla.ops.utils")
  to_base_2 = importlib.import_module("fla.ops.utils.constant").RCP_LN2

  def run(k: Any, v: Any, log_decay: Any, beta: Any) -> tuple[Any, Any]:
    g = utils.chunk_local_cumsum(
      log_decay, chunk_size=chunk_size, scale=to_base_2
    )
    w, u, _ = rule.chunk_gated_delta_rule_fwd_intra(
      k=k, v=v, g=g, beta=beta, chunk_size=chunk_size
    )
    return u, w

  return run


def delta_rule() -> Callable[..., tuple[Any, Any]]:
  """fla's whole rule (q, k, v, log_decay, beta) -> (out, final state)."""
  rule = importlib.import_module("fla.ops.gated_delta_rule")

  def run(q: Any, k: Any, v: Any, log_decay: Any, beta: Any) -> tuple[Any, Any]:
    with _torch().inference_mode():
      return rule.chunk_gated_delta_rule(
        q, k, v, log_decay, beta, output_final_state=True
      )

  return run


def _torch() -> Any:
  return importlib.import_module("torch")
