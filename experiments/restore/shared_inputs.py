"""What pictures that were degraded alike share: it is read once."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import posterior_jax
from experiments.harness import prior_files
from experiments.restore.heartbeat import Heartbeat
from experiments.restore.measurement.degradation import (
  BLURRED,
  CUSTOM,
  Shape,
  load_operator,
)
from experiments.restore.picture_files import kernel_file, picture_file
from experiments.restore.settings import OVERLAP, Settings
from posterior_jax import Operator, priors, uncertain
from posterior_jax.base import Denoiser

TURN = 2.5  # degrees between the kernels of a family, at most


class SharedInputs(NamedTuple):
  """Kernel, operator and prior, on the device that pictures are restored on."""

  device: jax.Device
  kernel: np.ndarray | None  # of motion blur
  family: uncertain.Kernels | None  # of a kernel that is not quite known
  build: Callable[[Shape], Operator] | None  # an operator of one's own
  prior: priors.UNetPrior[Any] | None  # None: the Gaussian one
  # of the tiles of a large picture; part of the program, and so one for all
  heartbeat: Heartbeat

  def on(self, device: jax.Device) -> "SharedInputs":
    """The same on another device, for pictures side by side."""
    # Put there, parameters take along whatever meets them.
    return self._replace(
      device=device,
      prior=jax.device_put(self.prior, device),
      heartbeat=Heartbeat(),
    )


def read(settings: Settings) -> SharedInputs:
  """Reads what any picture would need: kernel, mask, operator and prior.

  Raises:
    ValueError: one of them is missing, unreadable or does not fit the settings.
  """
  kernel, family = _kernels(settings)
  if settings.mask:
    picture_file.read("mask", settings.mask)
  build = None
  if settings.task == CUSTOM:
    build = load_operator(settings.operator, degrade=settings.degrade)
    if not settings.degrade and settings.noise_std is None:
      raise ValueError("noise_std must be given with an operator of one's own")
  prior = None
  if settings.prior != prior_files.GAUSSIAN:
    prior = prior_files.load(settings.prior, dtype=settings.dtype)
  device = jax.local_devices()[0]
  return SharedInputs(device, kernel, family, build, prior, Heartbeat())


def _kernels(
  settings: Settings,
) -> tuple[np.ndarray | None, uncertain.Kernels | None]:
  """The kernel of motion blur, and those that it may be."""
  if settings.task not in BLURRED:
    return None, None
  kernel = kernel_file.read(settings.kernel, flip=settings.kernel_flip)
  if not settings.kernel_degrees:
    return kernel, None
  return kernel, uncertain.turned(
    kernel_file.trimmed(kernel),
    degrees=settings.kernel_degrees,
    steps=2 * math.ceil(settings.kernel_degrees / TURN) + 1,
  )


def denoiser(
  common: SharedInputs,
  settings: Settings,
  known: Denoiser,
  size: tuple[int, int],
) -> Denoiser:
  """The prior's denoiser for pictures of a size.

  Args:
    common: whose prior it is.
    settings: with the side of a tile.
    known: the Gaussian prior's.
    size: (height, width).

  Raises:
    ValueError: for tiles that the network cannot take.
  """
  if common.prior is None:
    return known
  denoise, unit = common.prior.denoise, common.prior.config.unit
  if max(size) <= settings.tile:
    return posterior_jax.padded(denoise, multiple=unit)
  if settings.tile % unit:
    raise ValueError(
      f"tile must be divisible by {unit}, the network's unit; got "
      f"{settings.tile}"
    )
  height, width = (tiles_of(side, settings.tile, unit) for side in size)
  share = 1 / (height[0] * width[0])
  watched = common.heartbeat.watched(denoise, share)
  return posterior_jax.tiled(
    watched, tile=(height[1], width[1]), overlap=OVERLAP
  )


def tiles_of(side: int, most: int, unit: int) -> tuple[int, int]:
  """How many tiles cover a side, and how long they are.

  As few as overlap enough at `most` pixels, and then as short as still do:
  tiles of 512 for 2592 x 1680 pixels would work on a sixth more of them.
  """
  count = 1 + max(0, -(-(side - most) // (most - OVERLAP)))
  needed = -(-(side + (count - 1) * OVERLAP) // count)
  needed = max(needed, OVERLAP + 1)  # as `tiled` asks of either side
  return count, min(-(-needed // unit) * unit, most)
