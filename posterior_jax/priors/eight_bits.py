"""Kernels of 8 bits: whole numbers, and scales over their input channels.

  w[t, :, d] = s[t, d] q[t, :, d],  q in -127 ... 127,
  s[t, d] = max |w[t, :, d]| / 127

for every tap t and output channel d: the middle of a kernel is larger than its
border, and one scale for both costs a denoiser of 14.5 million weights 0.03 to
0.04 dB, these 0.01 (docs/benchmarks/restoration.md). A file keeps s under the
name of w with SCALE behind it. Kernels of at most FEW input or output channels,
those that pixels enter and leave by, have 16 bits.
"""

from collections.abc import Mapping

import jax
import numpy as np

from posterior_jax.foreign_files import tensor_file
from posterior_jax.foreign_files.messages import shown

SCALE = ":scale"
FEW = 4
_LARGEST = 127


def narrowed(
  params: Mapping[str, jax.Array | np.ndarray],
) -> dict[str, np.ndarray]:
  """Kernels in 8 bits beside their scales; all else in float16.

  Args:
    params: arrays by name, finite; kernels have two axes or more, the last two
      of input and output channels.
  """
  found: dict[str, np.ndarray] = {}
  for name, value in params.items():
    wide = np.asarray(value, np.float32)
    if wide.ndim < 2 or min(wide.shape[-2:]) <= FEW:
      found[name] = wide.astype(np.float16)
      continue
    scale = np.abs(wide).max(-2) / _LARGEST  # [..., D]
    # Zeros have any scale.
    whole = np.rint(wide / np.where(scale > 0, scale, 1)[..., None, :])
    found[name] = whole.astype(np.int8)
    found[name + SCALE] = scale
  return found


def widened(
  where: str, tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The parameters of which a file holds some in 8 bits, floating point.

  Args:
    where: the file's name, for messages.
    tensors: of the file.

  Raises:
    ValueError: if whole numbers have no scale for every tap and output channel,
      a scale has no whole numbers, or a product is not finite.
  """
  found: dict[str, np.ndarray] = {}
  for name, value in tensors.items():
    if name.endswith(SCALE):
      kernel = tensors.get(name.removesuffix(SCALE))
      if kernel is None or kernel.dtype != np.int8:
        raise ValueError(f"{where} has no numbers of 8 bits for {shown(name)}")
      continue
    if value.dtype == np.int8:
      scale = tensors.get(name + SCALE)
      asked = value.shape[:-2] + value.shape[-1:]
      if value.ndim < 2 or scale is None or scale.shape != asked:
        raise ValueError(
          f"{where} must hold {shown(name + SCALE)}, a number for every tap "
          f"and output channel of {shown(name)}, {asked}; got "
          f"{'none' if scale is None else scale.shape}"
        )
      # A scale that is finite may reach infinity 127 times.
      with np.errstate(over="ignore"):
        value = value * scale.astype(np.float32)[..., None, :]
      tensor_file.check_finite(where, name, value)
    found[name] = value
  return found
