"""Learned priors by the kind of file that they lie in."""

import hashlib
import json
import pathlib
from typing import Any, Literal, NamedTuple

from experiments.harness import writing
from posterior_jax import priors
from posterior_jax.priors import photo

SHIPPED, LARGE, GAUSSIAN = "", "large", "gaussian"
# What the package has, by what a config says.
_OURS: dict[str, Literal["small", "large"]] = {
  SHIPPED: "small",
  LARGE: "large",
}
CHANNELS = 3


class About(NamedTuple):
  """What is known of a prior: a row of a table.

  Attributes:
    prior: its name, by which rows say whose they are.
    parameters: of its network; None without one.
    photographs: how many it was trained on; as the others None where no
      manifest says it.
    steps: of its training.
    seconds: that those took.
    device: the kind that they took them on.
    devices: how many of them; 1 where the manifest does not say it.
    earlier: steps of the training that it started from, None of random
      weights; of those before that one the manifest of its own says more.
    sha256: as the function of that name; of a manifest, which holds the hash of
      the weights. A shipped prior that is trained further keeps its name and
      not its hash.
  """

  prior: str
  parameters: int | None = None
  photographs: int | None = None
  steps: int | None = None
  seconds: int | None = None
  device: str | None = None
  devices: int = 1
  earlier: int | None = None
  sha256: str | None = None


def load(
  prior: str, *, dtype: str = "float32", name: str = "prior"
) -> priors.UNetPrior[Any]:
  """A prior of colour photographs.

  Args:
    prior: "" for the small shipped one, "large" for the large one, whatever the
      working directory holds (a folder of that name is "./large"); a manifest
      NAME.json as `train_prior` writes it; a directory of diffusers; or a state
      dict of guided-diffusion, NAME.pt or NAME.safetensors.
    dtype: of the network's arithmetic, float32 or bfloat16.
    name: of the setting, for refusals.

  Returns:
    The prior; sides of images are divisible by its `config.unit`.

  Raises:
    ValueError: for a path that does not exist or is of no such kind, a file
      that its loader refuses, or a network of other than three channels.
  """
  if prior in _OURS:
    return priors.photo_prior(_OURS[prior], dtype=dtype)
  path = _path(prior)
  if not path.exists():
    raise ValueError(
      f"{name} must name a file or directory, {prior!r} is none; of those that "
      'are shipped "" is the small one and "large" the large one'
    )
  found = _read(path, dtype, name)
  if found.config.channels != CHANNELS:
    raise ValueError(
      f"{name} must be of colour images, 3 channels; that of {prior!r} has "
      f"{found.config.channels}"
    )
  return found


def named(prior: str) -> str:
  """A prior's name: another one for other weights, wherever they lie.

  Args:
    prior: as of `load`, or "gaussian".

  Returns:
    "small", "large", "gaussian", or the file's name and the first eight digits
    of its SHA-256, of a directory those of all its files together.
  """
  return GAUSSIAN if prior == GAUSSIAN else _named(prior, sha256(prior))


def _named(prior: str, whole: str) -> str:
  """As `named`, of its hash."""
  for size, manifest in photo.SHIPPED.items():
    if whole == writing.digest(manifest):
      return size
  return f"{pathlib.Path(prior).name} {whole[:8]}"


def sha256(prior: str) -> str:
  """Of a prior's file, as of `load`, or of a directory's all together.

  Not of "gaussian", which has no file.
  """
  whole, *more = digests(prior).values()
  if more:
    whole = hashlib.sha256("".join([whole, *more]).encode()).hexdigest()
  return whole


def about(prior: str, network: priors.UNetPrior[Any] | None) -> About:
  """What is known of a prior.

  Args:
    prior: as of `named`.
    network: as `load` returns it; None of "gaussian".
  """
  if network is None:
    return About(named(prior))
  size = sum(held.size for held in network.params.values())
  whole = sha256(prior)  # of gigabytes, maybe
  found = About(_named(prior, whole), size, sha256=whole)
  path = _path(prior)
  if path.suffix != ".json":
    return found
  said = json.loads(path.read_text("utf-8"))
  seen = said.get("photographs")
  return found._replace(
    photographs=None if seen is None else len(seen),
    devices=said.get("devices", 1),
    earlier=(said.get("start") or {}).get("steps"),
    **{name: said.get(name) for name in ("steps", "seconds", "device")},
  )


def any_way_up(prior: str) -> bool:
  """Whether it knows pictures mirrored and transposed: the shipped ones do.

  A prior of one's own may have learned what has one way up, such as faces, so
  that `NFCConfig.fast` must not turn its pictures.
  """
  return prior in _OURS


def digests(prior: str, *, name: str = "prior") -> dict[str, str]:
  """SHA-256 of the files of `load`; none for "gaussian".

  Those of a shipped prior too: another version of the package may have another
  one, under which a run must not go on.

  Raises:
    OSError: there is no such file.
  """
  if prior == GAUSSIAN:
    return {}
  # A manifest says the hash of its weights, which is verified on loading.
  return writing.digests(name, [_path(prior)])


def _path(prior: str) -> pathlib.Path:
  """The file or directory, of a shipped prior its manifest."""
  return photo.SHIPPED[_OURS[prior]] if prior in _OURS else pathlib.Path(prior)


def _read(path: pathlib.Path, dtype: str, name: str) -> priors.UNetPrior[Any]:
  if path.is_dir():
    return priors.load_diffusers(path, dtype=dtype)
  if path.suffix == ".json":
    return priors.load_prior(path, dtype=dtype)
  if path.suffix in (".pt", ".pth", ".safetensors"):
    return priors.load_adm(path, dtype=dtype)
  raise ValueError(
    f"{name} must end in .json, .pt, .pth or .safetensors, or be a directory; "
    f"got {str(path)!r}"
  )
