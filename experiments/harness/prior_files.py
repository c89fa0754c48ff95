"""Learned priors by the kind of file that they lie in."""

import pathlib
from typing import Any

from experiments.harness import writing
from posterior_jax import priors

SHIPPED, GAUSSIAN = "", "gaussian"
CHANNELS = 3


def load(prior: str, *, dtype: str = "float32") -> priors.UNetPrior[Any]:
  """A prior of colour photographs.

  Args:
    prior: "" for the shipped one; a manifest NAME.json as `train_prior` writes
      it; a directory of diffusers; or a state dict of guided-diffusion, NAME.pt
      or NAME.safetensors.
    dtype: of the network's arithmetic, float32 or bfloat16.

  Returns:
    The prior; sides of images are divisible by its `config.unit`.

  Raises:
    ValueError: for a path that does not exist or is of no such kind, a file
      that its loader refuses, or a network of other than three channels.
  """
  if prior == SHIPPED:
    return priors.photo_prior(dtype=dtype)
  path = pathlib.Path(prior)
  if not path.exists():
    raise ValueError(f"prior must name a file or directory, {prior!r} is none")
  found = _read(path, dtype)
  if found.config.channels != CHANNELS:
    raise ValueError(
      f"prior must be of colour images, 3 channels; that of {prior!r} has "
      f"{found.config.channels}"
    )
  return found


def any_way_up(prior: str) -> bool:
  """Whether it knows pictures mirrored and transposed: the shipped one does.

  A prior of one's own may have learned what has one way up, such as faces, so
  that `NFCConfig.fast` must not turn its pictures.
  """
  return prior == SHIPPED


def digests(prior: str) -> dict[str, str]:
  """SHA-256 of the files of `load`; none for priors that come with the package.

  Raises:
    OSError: there is no such file.
  """
  # A manifest says the hash of its weights, which is verified on loading.
  known = prior in (SHIPPED, GAUSSIAN)
  return {} if known else writing.digests("prior", [prior])


def _read(path: pathlib.Path, dtype: str) -> priors.UNetPrior[Any]:
  if path.is_dir():
    return priors.load_diffusers(path, dtype=dtype)
  if path.suffix == ".json":
    return priors.load_prior(path, dtype=dtype)
  if path.suffix in (".pt", ".pth", ".safetensors"):
    return priors.load_adm(path, dtype=dtype)
  raise ValueError(
    "prior must end in .json, .pt, .pth or .safetensors, or be a directory; "
    f"got {str(path)!r}"
  )
