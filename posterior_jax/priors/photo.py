"""The photo priors that ship with the package, and files like them.

A prior is two files: NAME.safetensors holds parameters of 16 bits, or kernels
of 8 (`eight_bits`); NAME.json says what they are: the network's shape, what it
was trained on, the command, and the hash of the weights, which is verified on
loading. No code is read.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import DTypeLike

from posterior_jax.foreign_files.folder import as_path
from posterior_jax.foreign_files.manifest import read as read_manifest
from posterior_jax.foreign_files.messages import shown
from posterior_jax.priors import eight_bits
from posterior_jax.priors.checkpoints.named_tensors import check_held
from posterior_jax.priors.learned import (
  UNetPrior,
  prior_of_file,
  unet_prior,
)
from posterior_jax.priors.nets.unet import UNetConfig

_ASSETS = pathlib.Path(__file__).parents[1] / "assets"
SHIPPED: dict[str, pathlib.Path] = {
  "small": _ASSETS / "photo_prior.json",
  "large": _ASSETS / "photo_prior_large.json",
}


def photo_prior(
  size: Literal["small", "large"] = "small",
  *,
  dtype: DTypeLike = jnp.float32,
) -> UNetPrior[UNetConfig]:
  """A shipped denoiser of photographs: colour, [-1, 1], sides by 8.

  Args:
    size: "small" has 5.3 million parameters, learned from 69 photographs, and
      the presets were tuned under it. "large" has 14.5 million, learned from
      476 and denoises 0.22 dB better (sigma 25 of 255, 23 Kodak pictures), at
      3.7 times the time on a CPU (`python -m experiments.prior_speed`,
      docs/benchmarks/speed.md). By settings tuned under the small one
      `NFCConfig.perceptual` changes by -0.03 to 0.14 dB under it, and
      `NFCConfig.fast`, whose images carry no noise, loses up to 0.2 dB on
      blurs and 2.2 on super-resolution; that was measured before the second of
      its two training runs (docs/benchmarks/tuned_alike.md, "Under another
      prior").
    dtype: of the arithmetic: float32, or bfloat16 on accelerators.

  Returns:
    The prior; `photo_prior().denoise` is what `posterior_jax.run` takes.

  Raises:
    ValueError: if there is no such size.

  Example:
    >>> import posterior_jax as pj
    >>> prior = pj.priors.photo_prior()
    >>> prior.config.channels, prior.config.unit
    (3, 8)
  """
  # A list has no hash, and an array no single answer.
  if not isinstance(size, str) or size not in SHIPPED:
    raise ValueError(f"size must be 'small' or 'large', got {shown(size)}")
  return load_prior(SHIPPED[size], dtype=dtype)


def load_prior(
  manifest: pathlib.Path | str, *, dtype: DTypeLike = jnp.float32
) -> UNetPrior[UNetConfig]:
  """A prior that `save_prior` wrote.

  Args:
    manifest: NAME.json; the weights lie beside it.
    dtype: of the arithmetic.

  Returns:
    The prior.

  Raises:
    TypeError: if `manifest` is no path.
    FileNotFoundError: if there is no such manifest.
    ValueError: if the manifest says no network, or the weights are missing,
      changed, not finite, elsewhere, or those of another network.
  """
  config, path, held = read_manifest(
    as_path(manifest, "manifest"), "network", UNetConfig, eight_bits=True
  )
  params = eight_bits.widened(path.name, held)
  check_held(path.name, params, config)
  return prior_of_file(config, params, dtype=dtype)


def save_prior(
  manifest: pathlib.Path | str,
  params: Mapping[str, jax.Array | np.ndarray],
  config: UNetConfig,
  about: Mapping[str, Any],
  *,
  bits: int = 16,
) -> None:
  """Writes a prior's two files, the manifest last.

  Args:
    manifest: NAME.json.
    params: of `config`'s network, finite.
    config: shape of the network.
    about: what else the manifest says: data, command, seconds.
    bits: of a stored weight: 16, a floating-point number, or 8, a whole one
      times a scale for its tap and output channel; what is no kernel or has
      4 channels and fewer on a side has 16 in any case.

  Raises:
    TypeError: if `manifest` is no path.
    ValueError: if the parameters are not the network's, one is not finite in
      float16, or bits is neither 8 nor 16.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> import posterior_jax as pj
    >>> config = pj.priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)
    >>> params = pj.priors.initial_params(config, jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   manifest = pathlib.Path(folder) / "mine.json"
    ...   pj.priors.save_prior(manifest, params, config, {"data": "none"})
    ...   pj.priors.load_prior(manifest).config == config
    True
  """
  manifest = as_path(manifest, "manifest")
  if bits not in (8, 16):
    raise ValueError(f"bits must be 8 or 16, got {bits}")
  unet_prior(config, params)
  for key, value in params.items():
    if not np.abs(value).max() <= np.finfo(np.float16).max:
      raise ValueError(f"params[{key!r}] must be finite in float16; it is not")
  if bits == 8:
    small = eight_bits.narrowed(params)
  else:
    # Half the size to ship; a weight is rounded by at most 5e-4 of itself.
    small = {k: np.asarray(value, np.float16) for k, value in params.items()}
  weights = safetensors.numpy.save(small)
  path = manifest.with_suffix(".safetensors")
  # The manifest last: whoever finds one finds whole weights beside it.
  path.write_bytes(weights)
  said = {
    "file": path.name,
    "sha256": hashlib.sha256(weights).hexdigest(),
    "network": dataclasses.asdict(config),
    **about,
  }
  manifest.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
