"""What a program is compiled for, as far as tracing can know.

`jax.sharding.use_abstract_mesh`, or a mesh, names a device; else it is what
this host has. `backends` chooses among kernels only when a program is lowered;
this is for what must be decided before, such as what the backward pass keeps.
"""

import functools
import re

import jax

# Their marketing names; an abstract device has no compute capability.
_HOPPER = re.compile(r"\bG?H(20|100|200|800)\b")


def platform() -> str | None:
  """One of "tpu", "gpu", "cuda" and "rocm", None if no accelerator is known."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return _host_platform() if device is None else device.platform


@functools.cache
def _host_platform() -> str | None:
  for name in ("tpu", "cuda", "rocm"):
    try:
      if jax.devices(name):
        return name
    except RuntimeError:  # none here
      continue
  return None


def cuda_capability() -> str | None:
  """The compute capability, such as "9.0", or None without a CUDA device.

  Several, where a host has different ones; the device's kind where an abstract
  device is not known to be a Hopper one.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return _host_capability()
  if device.platform not in ("cuda", "gpu"):
    return None
  kind = device.device_kind
  return "9.0" if _HOPPER.search(kind) else kind


@functools.cache
def _host_capability() -> str | None:
  try:
    found = {device.compute_capability for device in jax.devices("cuda")}
  except RuntimeError:
    return None
  return ", ".join(sorted(found))
